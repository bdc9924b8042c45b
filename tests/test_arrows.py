"""Which package may import which: backends → exporters → core, conformance → core."""

import ast
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
#: What the packages of a source root may import of this project.
ALLOWED = {
    "core": ("perfuse",),
    "exporters": ("perfuse", "perfuse_exporters"),
    "conformance": ("perfuse", "perfuse_conformance"),
}
#: The rooms of conformance: each may import itself and those before it.
ROOMS = ("cases", "judge", "reference", "runner", "report")
#: Core's own way to an exporter, for ``perfuse inspect --for``.
KNOWN = {("perfuse.report.portability", "perfuse.capture")}


def modules(root: str) -> Mapping[str, Path]:
    base = ROOT / root
    return {
        ".".join(path.relative_to(base).with_suffix("").parts).removesuffix(".__init__"): path
        for path in base.rglob("*.py")
    }


def imports(path: Path) -> Iterator[str]:
    """Every module that a file imports, in functions and for type checkers, too."""
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("root", ALLOWED)
def test_roots_import_what_they_may(root: str) -> None:
    found = modules(root)
    assert found
    wrong = {
        (name, there)
        for name, path in found.items()
        for there in imports(path)
        if there.startswith("perfuse") and there.partition(".")[0] not in ALLOWED[root]
    }
    assert not {pair for pair in wrong if not any(_is(pair, known) for known in KNOWN)}


def _is(pair: tuple[str, str], known: tuple[str, str]) -> bool:
    return pair[0] == known[0] and pair[1].startswith(known[1])


def test_rooms_of_conformance_import_those_before_them() -> None:
    wrong = []
    for name, path in modules("conformance").items():
        room = _room(name)
        allowed = ROOMS[: ROOMS.index(room) + 1] if room is not None else ROOMS
        wrong += [
            (name, there)
            for there in imports(path)
            if _room(there) is not None and _room(there) not in allowed
        ]
    assert not wrong


def _room(module: str) -> str | None:
    parts = module.split(".")
    known = parts[0] == "perfuse_conformance" and len(parts) > 1 and parts[1] in ROOMS
    return parts[1] if known else None


@pytest.mark.parametrize("root", ["backends", "exporters", "conformance"])
def test_no_module_imports_itself_through_others(root: str) -> None:
    found = modules(root)
    graph = {
        name: sorted({there for there in imports(path) if there in found and there != name})
        for name, path in found.items()
    }
    assert not list(_circles(graph))


def _circles(graph: Mapping[str, Sequence[str]]) -> Iterator[Sequence[str]]:
    done: set[str] = set()

    def walk(name: str, way: tuple[str, ...]) -> Iterator[Sequence[str]]:
        if name in way:
            yield (*way[way.index(name) :], name)
        elif name not in done:
            for there in graph[name]:
                yield from walk(there, (*way, name))
            done.add(name)

    for name in graph:
        yield from walk(name, ())
