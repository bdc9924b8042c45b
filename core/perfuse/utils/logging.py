"""How much is logged, with the functions of ``diffusers.utils.logging``.

perfuse itself warns by Python's ``warnings`` and logs nothing. What is set here counts for loggers that
``get_logger`` gave, and for Diffusers' own, where a bridged pipeline runs it.
"""

import logging
import sys
from logging import CRITICAL, DEBUG, ERROR, FATAL, INFO, NOTSET, WARN, WARNING, Logger
from typing import Any

__all__ = [
    "CRITICAL",
    "DEBUG",
    "ERROR",
    "FATAL",
    "INFO",
    "NOTSET",
    "WARN",
    "WARNING",
    "disable_progress_bar",
    "enable_progress_bar",
    "get_logger",
    "get_verbosity",
    "set_verbosity",
    "set_verbosity_debug",
    "set_verbosity_error",
    "set_verbosity_info",
    "set_verbosity_warning",
]

_ROOT = "perfuse"


def get_logger(name: str | None = None) -> Logger:
    """The logger of a name, by default perfuse's."""
    _level()
    return logging.getLogger(_ROOT if name is None else name)


def get_verbosity() -> int:
    """The level from which on perfuse's logger logs: ``WARNING`` by default."""
    return _level().level


def set_verbosity(verbosity: int) -> None:
    """Log from a level on: ``INFO``, ``WARNING`` … of this module."""
    logging.getLogger(_ROOT).setLevel(verbosity)
    theirs = _theirs()
    if theirs is not None:
        theirs.set_verbosity(verbosity)


def set_verbosity_debug() -> None:
    """Log everything."""
    set_verbosity(DEBUG)


def set_verbosity_info() -> None:
    """Log what is of interest, too."""
    set_verbosity(INFO)


def set_verbosity_warning() -> None:
    """Log warnings and errors."""
    set_verbosity(WARNING)


def set_verbosity_error() -> None:
    """Log errors alone."""
    set_verbosity(ERROR)


def disable_progress_bar() -> None:
    """Show no bar while Diffusers loads a bridged pipeline; perfuse shows none while it loads."""
    theirs = _theirs()
    if theirs is not None:
        theirs.disable_progress_bar()


def enable_progress_bar() -> None:
    """Show that bar again."""
    theirs = _theirs()
    if theirs is not None:
        theirs.enable_progress_bar()


def _level() -> Logger:
    logger = logging.getLogger(_ROOT)
    if logger.level == NOTSET:
        logger.setLevel(WARNING)
    return logger


def _theirs() -> Any:
    """Diffusers' module, if it has been imported."""
    return getattr(sys.modules.get("diffusers.utils"), "logging", None)
