"""Prepared programs, shared by the pipelines that were made of one another."""

from collections.abc import Callable, Hashable, Mapping
from typing import Any

from perfuse.contract.backend import Program

__all__ = ["Programs", "Shared"]


class Shared:
    """Programs by what they run and where; each is closed when its last pipeline releases it."""

    def __init__(self) -> None:
        self._programs: dict[Hashable, Program] = {}
        self._users: dict[Hashable, int] = {}
        #: Torch modules that a user reads, by attribute, precision and device: whichever pipeline
        #: they are read from, they are the same, and run in all of them.
        self.modules: dict[tuple[str, str | None, str | None], Any] = {}

    def take(self, key: Hashable, make: Callable[[], Program]) -> Program:
        """The program of a key, made unless another pipeline has it already."""
        if key not in self._programs:
            self._programs[key] = make()
        self._users[key] = self._users.get(key, 0) + 1
        return self._programs[key]

    def rebind(self, old: Hashable, new: Hashable, change: Callable[[Program], bool]) -> bool:
        """Have ``change`` make a program what another key names, if it is one pipeline's alone."""
        if new in self._programs or self._users[old] > 1 or not change(self._programs[old]):
            return False
        self._programs[new], self._users[new] = self._programs.pop(old), self._users.pop(old)
        return True

    def release(self, key: Hashable) -> None:
        """Give a program back, and close it if nobody else has it."""
        self._users[key] -= 1
        if not self._users[key]:
            del self._users[key]
            self._programs.pop(key).close()


class Programs:
    """The programs of one pipeline by component."""

    def __init__(self, shared: Shared | None = None) -> None:
        self.shared = Shared() if shared is None else shared
        self._held: dict[str, tuple[Hashable, Program]] = {}

    def get(self, name: str) -> Program | None:
        """The program of a component, if it is prepared."""
        found = self._held.get(name)
        return found[1] if found is not None else None

    def prepare(self, name: str, key: Hashable, make: Callable[[], Program]) -> Program:
        """The program of a component, from another pipeline or made now."""
        program = self.shared.take(key, make)
        self._held[name] = (key, program)
        return program

    def renew(self, name: str, key: Hashable, change: Callable[[Program], bool]) -> None:
        """Have ``change`` make a component's program what a key names, or give it back."""
        held = self._held.get(name)
        if held is None or held[0] == key:
            return
        try:
            if self.shared.rebind(held[0], key, change):
                self._held[name] = key, held[1]
                return
        except BaseException:  # it has some of the weights of each
            self.release(name)
            raise
        self.release(name)

    def release(self, name: str) -> None:
        """Give the program of a component back, if it is prepared."""
        held = self._held.pop(name, None)
        if held is not None:
            self.shared.release(held[0])

    def all(self) -> Mapping[str, Program]:
        """The programs that are prepared, by component."""
        return {name: program for name, (_, program) in self._held.items()}
