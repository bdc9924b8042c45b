"""The pages in docs say what is true: files as ``plugin new`` writes them, commands that exist."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from perfuse.cli import main
from perfuse.plugins.scaffold import plugin_files

PAGE = Path(__file__).parent.parent / "docs" / "writing-a-backend.md"
#: Language, what else stands behind the fence, and the text.
_FENCED = re.compile(r"^```(\w+) *(.*?)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
#: A plugin's author writes it; ``plugin new`` does not.
_KNOWN_FAILURES = "tests/conformance.toml"


@pytest.fixture(scope="module")
def written() -> dict[str, str]:
    return plugin_files("acme-npu")


@pytest.fixture(scope="module")
def page() -> str:
    return PAGE.read_text(encoding="utf-8")


def blocks(text: str, *languages: str) -> Iterator[tuple[str, str]]:
    """What stands behind the fence, and the text, of each block in these languages."""
    for language, about, code in _FENCED.findall(text):
        if language in languages:
            yield about, code


def commands(text: str) -> list[str]:
    """The lines of a page's console blocks that a reader types."""
    lines = [line for _, code in blocks(text, "console") for line in code.splitlines()]
    assert all(line.startswith("$ ") for line in lines)
    return [line.removeprefix("$ ") for line in lines]


def parse(line: str) -> None:
    """Have click read a command line of perfuse, without running it.

    Raises:
        click.UsageError: there is no such command or option, or a value is missing.
    """
    name, *words = shlex.split(line)
    command: click.Command = main
    context = click.Context(main, info_name=name)
    while isinstance(command, click.Group) and words and not words[0].startswith("-"):
        inner = command.get_command(context, words[0])
        if inner is None:
            raise click.UsageError(f"{words[0]} is no command of {command.name}")
        command, words = inner, words[1:]
        context = click.Context(command, info_name=command.name, parent=context)
    command.make_context(command.name, list(words), parent=context.parent)


def test_every_block_of_a_file_is_what_plugin_new_writes(
    page: str, written: dict[str, str]
) -> None:
    shown = [block for block in blocks(page, "python", "toml") if block[0] != _KNOWN_FAILURES]
    assert len(shown) >= 8
    for where, code in shown:
        assert where in written, f"a block of {where!r}, which plugin new does not write"
        whole_lines = f"\n{code}" in f"\n{written[where]}"
        assert whole_lines, f"not what plugin new writes into {where}:\n{code}"


def test_the_test_file_is_shown_whole(page: str, written: dict[str, str]) -> None:
    where = "tests/test_conformance.py"
    assert dict(blocks(page, "python"))[where] == written[where]


def test_the_list_of_files_is_complete(page: str, written: dict[str, str]) -> None:
    ((_, code),) = blocks(page, "text")
    assert sorted(line.split()[0] for line in code.splitlines()) == sorted(written)


def test_no_block_is_of_a_kind_that_is_not_checked(page: str) -> None:
    kinds = {language for language, _, _ in _FENCED.findall(page)}
    assert kinds == {"console", "python", "toml", "text"}
    assert page.count("```") == 2 * len(_FENCED.findall(page))


def test_the_commands_exist(page: str, written: dict[str, str]) -> None:
    for text in (page, written["README.md"]):
        lines = commands(text)
        ours = [line for line in lines if line.startswith("perfuse ")]
        assert len(ours) >= 4
        for line in ours:
            parse(line)
        others = {line.split()[0] for line in lines} - {"perfuse"}
        assert others <= {"pip", "cd", "pytest", "grep"}


@pytest.mark.parametrize(
    "line",
    ["perfuse plugins new x", "perfuse plugin make x", "perfuse doctor --deep", "perfuse export"],
)
def test_a_command_that_does_not_exist_is_found(line: str) -> None:
    with pytest.raises(click.UsageError):
        parse(line)


def test_the_known_failure_is_one_that_the_suite_reads(page: str, tmp_path: Path) -> None:
    from perfuse.sources.opening import open_model
    from perfuse_conformance.cases.catalogue import Capability, cases_of
    from perfuse_conformance.judge.expectations import read_expectations

    path = tmp_path / "conformance.toml"
    path.write_text(dict(blocks(page, "toml"))[_KNOWN_FAILURES], encoding="utf-8")
    (entry,) = read_expectations(path).entries
    spec = open_model(None).spec
    declared = {
        (name, "float32", "static"): Capability(level="full", reason="") for name in spec.components
    }
    assert entry.id in {case.id for case in cases_of(spec, declared, ("float32",), "L1")}
    (asked,) = re.findall(r"--case (\S+)", page)
    assert asked == entry.id


def test_levels_and_statuses_are_those_of_the_suite(page: str) -> None:
    from perfuse_conformance.judge.levels import MEANING
    from perfuse_conformance.judge.results import Status

    for level, meaning in MEANING.items():
        assert level == "none" or f"| {level} | {meaning} |" in page
    named = set(re.findall(r"`([A-Z]+(?:_[A-Z]+)+|PASS|XFAIL)`", page))
    assert named - set(Status.__members__) == {"NOT_IMPLEMENTED"}  # what supports answers


def test_what_supports_answers_is_complete(page: str) -> None:
    from perfuse import SupportLevel

    rows = re.findall(r"^\| `([A-Z_]+)` \|", page, re.MULTILINE)
    assert [row for row in rows if row in SupportLevel.__members__] == list(
        SupportLevel.__members__
    )
