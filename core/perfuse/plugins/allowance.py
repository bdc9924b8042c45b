"""A time limit for a process that a busy machine does not use up."""

import threading
import time

__all__ = ["Allowance", "delay"]


def delay(process: int | str) -> float:
    """Seconds in which a process could have run and had to wait for a processor.

    Those of its first thread; 0 where the system does not tell, or the process has ended.

    Args:
        process: Its number, or ``"self"``.
    """
    try:
        with open(f"/proc/{process}/schedstat", encoding="ascii") as file:
            return int(file.read().split()[1]) / 1e9
    except (OSError, ValueError, IndexError):
        return 0.0


class Allowance:
    """Seconds that a process may take, from now on; those in which others had its turn do not count."""

    def __init__(self, process: int | str, seconds: float) -> None:
        self._process, self._seconds = process, seconds
        self._began, self._before = time.monotonic(), delay(process)

    def left(self) -> float:
        """How many seconds it has at least from now on; 0 if they are used up.

        Never more than can be waited for at once, however many it was given.
        """
        spent = time.monotonic() - self._began - (delay(self._process) - self._before)
        return min(max(0.0, self._seconds - spent), threading.TIMEOUT_MAX)
