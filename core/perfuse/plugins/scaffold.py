"""Writes a plugin template: a distribution that installs, runs and passes conformance as it is."""

import re
from collections.abc import Iterator
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path

from perfuse.errors import InputError
from perfuse.plugins.host import host, missing_modules
from perfuse.sources.store import atomic_folder, locked

__all__ = ["new_plugin", "plugin_files"]

#: The placeholder name in the template, in each of its spellings.
_WRITTEN = re.compile("acme-npu|acme_npu|AcmeNpu")
#: The suffix of template files, so that linters and test runners ignore them.
_SUFFIX = ".in"
_NAME = re.compile("[a-z][a-z0-9]*(-[a-z0-9]+)*")
#: The longest name; a longer one would make lines of the template too long.
_LONGEST = 24


def new_plugin(name: str, parent: Path) -> Path:
    """Write the folder ``perfuse-NAME`` with a whole distribution, and return it.

    Args:
        name: Of the backend, of its format and, after ``perfuse-``, of the distribution.
        parent: Where the folder is made.

    Raises:
        InputError: the name cannot be used, is taken, or the folder is there already.
        ExportError: the folder cannot be written.
    """
    _check_name(name)
    folder = parent.resolve() / f"perfuse-{name}"
    with locked(folder):
        if folder.exists():
            raise InputError(f"{folder} was to be written; it is there already. Move it away.")
        with atomic_folder(folder) as partial:
            for where, text in plugin_files(name).items():
                path = partial / where
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(text, encoding="utf-8", newline="\n")
    return folder


def plugin_files(name: str) -> dict[str, str]:
    """The text of each file of a plugin, by its path with forward slashes.

    >>> sorted(plugin_files("acme-npu"))[-1]
    'tests/test_conformance.py'
    """
    forms = {
        "acme-npu": name,
        "acme_npu": name.replace("-", "_"),
        "AcmeNpu": "".join(part.capitalize() for part in name.split("-")),
    }

    def put_in(text: str) -> str:
        return _WRITTEN.sub(lambda found: forms[found[0]], text)

    return {
        put_in(where.removesuffix(_SUFFIX)): put_in(text)
        for where, text in _template(files("perfuse.plugins") / "template")
    }


def _template(folder: Traversable, within: str = "") -> Iterator[tuple[str, str]]:
    for item in folder.iterdir():
        if item.is_dir():
            yield from _template(item, f"{within}{item.name}/")
        elif item.name.endswith(_SUFFIX):
            yield within + item.name, item.read_text(encoding="utf-8")


def _check_name(name: str) -> None:
    if _NAME.fullmatch(name) is None or len(name) > _LONGEST:
        raise InputError(
            f"A plugin {name!r} was asked for; a name begins with a letter and has lower-case "
            f"letters, digits and single hyphens, at most {_LONGEST}: acme-npu."
        )
    if name.startswith("perfuse-"):
        raise InputError(
            f"A plugin {name!r} was asked for; perfuse- is put before the name. Leave it out: "
            f"perfuse plugin new {name.removeprefix('perfuse-')}."
        )
    taken = {
        f"a backend {name}": name in host().backends(),
        f"an exporter for {name}": name in host().exporters(),
        f"a module {_module(name)}": not missing_modules([_module(name)]),
    }
    for what, is_taken in taken.items():
        if is_taken:
            raise InputError(
                f"A plugin {name!r} was asked for; {what} is installed. Choose another name."
            )


def _module(name: str) -> str:
    return f"perfuse_{name.replace('-', '_')}"
