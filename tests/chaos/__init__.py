"""Long live runs under random kills; ``make chaos``."""
