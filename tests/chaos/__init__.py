"""Live runs of the chaos harness: a few seeds in ``make test``, more by ``make chaos``."""
