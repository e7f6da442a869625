"""Unit, property, cluster, chaos and bench tests; oracle, strategies and builders that they share."""
