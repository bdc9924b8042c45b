"""The ``jax`` module, and its settings for a while."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from threading import RLock
from typing import Any

__all__ = ["import_jax", "settings"]

_settings_lock = RLock()


def import_jax() -> Any:
    """Import ``jax`` without changing global settings and without its log messages.

    Importing JAX 0.10 draws from numpy's global generator (``jax._src.clusters.k8s_cluster``), and
    whatever the process has seeded would go on elsewhere. Its runtime logs to standard error.
    """
    if "jax" not in sys.modules:
        import numpy as np

        os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
        state = np.random.get_state()
        import jax

        np.random.set_state(state)
    import jax

    return jax


@contextmanager
def settings(**values: Any) -> Iterator[None]:
    """JAX's settings within the block; they are the process', so one thread at a time has its own."""
    jax = import_jax()

    with _settings_lock:
        before = {name: getattr(jax.config, name) for name in values}
        try:
            for name, value in values.items():
                jax.config.update(name, value)
            yield
        finally:
            for name, value in before.items():
                jax.config.update(name, value)
