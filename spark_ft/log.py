"""The engine's log: lines for people on stderr, by the standard library's logging.

One line per thing with all its fields; INFO tells of life cycles, WARNING of faults survived,
ERROR of jobs lost.  Cores return Notes instead; their hosts log.
"""

import logging

_ROOT = "spark_ft"


def get_logger(name: str) -> logging.Logger:
    """The logger of one module, below ``spark_ft``."""
    return logging.getLogger(name if name.startswith(_ROOT) else f"{_ROOT}.{name}")


def set_level(level: str) -> None:
    """Set the engine's level by Spark's names: ALL, DEBUG, ERROR, FATAL, INFO, OFF, TRACE, WARN."""
    levels = {"ALL": 1, "TRACE": 5, "WARN": logging.WARNING, "FATAL": logging.CRITICAL, "OFF": 100}
    logger = logging.getLogger(_ROOT)
    if not logger.handlers:
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
        logger.addHandler(handler)
        logger.propagate = False
    logger.setLevel(levels.get(level.upper(), level.upper()))
