"""Faults for real: processes are killed, and task starts are counted, not only answers compared."""
