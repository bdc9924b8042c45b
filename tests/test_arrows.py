"""Which package may import which: backends → exporters → core, conformance → core."""

import ast
from collections.abc import Iterator, Mapping, Sequence
from importlib import import_module
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


def modules(root: str) -> Mapping[str, Path]:
    base = ROOT / root
    return {
        ".".join(path.relative_to(base).with_suffix("").parts).removesuffix(".__init__"): path
        for path in base.rglob("*.py")
    }


def imports(path: Path, *, typing: bool = True) -> Iterator[str]:
    """Every module that a file imports, in functions, too; and for type checkers, if asked for."""
    tree = ast.parse(path.read_text("utf-8"))
    left_out = set() if typing else {id(node) for node in _for_type_checkers(tree)}
    for node in ast.walk(tree):
        if id(node) in left_out:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            module = _absolute(node, path)
            yield module
            yield from (f"{module}.{alias.name}" for alias in node.names)


def _for_type_checkers(tree: ast.Module) -> Iterator[ast.AST]:
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            yield from ast.walk(node)


def _absolute(node: ast.ImportFrom, path: Path) -> str:
    """The module that an import names, where it is relative to its own, too."""
    if not node.level:
        return node.module or ""
    folder = path.parents[node.level - 1].relative_to(ROOT)
    return ".".join([*folder.parts[1:], *([node.module] if node.module else [])])


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
    assert not wrong


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


@pytest.mark.parametrize("root", ["core", "backends", "exporters", "conformance"])
def test_no_module_imports_itself_through_others(root: str) -> None:
    found = modules(root)
    graph = {
        name: sorted(
            {there for there in imports(path, typing=False) if _another(there, name, found)}
        )
        for name, path in found.items()
    }
    assert not list(_circles(graph))


def _another(there: str, name: str, found: Mapping[str, Path]) -> bool:
    """Whether a module is one of those found, and neither the importing one nor a package of it."""
    return there in found and there != name and not name.startswith(f"{there}.")


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


# ── What other packages may use of core ─────────────────────────────────────────────────────────

#: The modules whose ``__all__`` is public, beside ``perfuse`` itself.
DOORS = (
    "perfuse",
    "perfuse.arrays",
    "perfuse.backend",
    "perfuse.bridge",
    "perfuse.capture",
    "perfuse.errors",
    "perfuse.models",
    "perfuse.modular",
    "perfuse.plugins",
    "perfuse.memory",
    "perfuse.progress",
    "perfuse.report",
    "perfuse.run",
    "perfuse.schedulers",
    "perfuse.shapes",
    "perfuse.shapes.evaluate",
    "perfuse.shapes.grammar",
    "perfuse.sources",
    "perfuse.spec",
    "perfuse.tasks",
)


def _used(path: Path) -> Iterator[tuple[str, str]]:
    """Each module of core that a file imports from, with the name."""
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "perfuse":
            yield from ((str(node.module), alias.name) for alias in node.names)


@pytest.mark.parametrize("root", ["backends", "exporters", "conformance", "plugins"])
def test_other_packages_come_in_by_the_doors(root: str) -> None:
    files = [path for path in (ROOT / root).rglob("*.py") if "tests" not in path.parts]
    used = {(module, name) for path in files for module, name in _used(path)}
    assert used
    behind = {(module, name) for module, name in used if module not in DOORS}
    assert not behind
    # A model by its class name is public, and found rather than listed.
    listed = {door: {*import_module(door).__all__, *_classes(door)} for door in DOORS}
    assert not {(module, name) for module, name in used if name not in listed[module]}


def _classes(door: str) -> set[str]:
    if door != "perfuse.models":
        return set()
    from perfuse.models.registry import own

    return {architecture.class_name for architecture in own()}


# ── Architectures are named by the file that owns them ──────────────────────────────────────────


def test_core_spells_an_architecture_s_name_in_its_own_folder_alone() -> None:
    from perfuse.models.registry import own

    core = ROOT / "core" / "perfuse"
    owners = {
        architecture.class_name: core / "models" / architecture.build.split(".")[2]
        for architecture in own()
    }
    assert len(owners) > 4
    # The bundled model's training script makes models of named classes, as a user would; and a
    # network may be made of another's.
    code = {
        path: _code(path)
        for path in core.rglob("*.py")
        if "shapes" not in path.parts and path.name != "network.py"
    }
    spelled = {
        (name, path.relative_to(core).as_posix())
        for path, said in code.items()
        for name in owners.keys() & said
        if not path.is_relative_to(owners[name])
    }
    # A part of a UNet is called as transformers were before each had a class.
    assert spelled <= {("Transformer2DModel", "models/__init__.py")}


def _code(path: Path) -> set[str]:
    """The names and texts in a file's code; what is said in docstrings and comments is not code."""
    tree = ast.parse(path.read_text("utf-8"))
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    said = {
        id(node.body[0].value)
        for node in ast.walk(tree)
        if isinstance(node, documented) and node.body and isinstance(node.body[0], ast.Expr)
    }
    names = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    names |= {node.name for node in ast.walk(tree) if isinstance(node, ast.alias)}
    texts = {
        node.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in said
    }
    return names | texts
