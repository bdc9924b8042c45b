"""The pages in docs are true: their examples run, their lists are complete, their pictures are there."""

import re
from pathlib import Path
from typing import Any

import pytest
from tests.examples import check_examples

ROOT = Path(__file__).parent.parent
PAGES = sorted((ROOT / "docs").glob("*.md"))
#: Pages whose blocks are parts of files, or commands for one's own plugin; test_docs.py reads it.
NOT_RUN = {"writing-a-backend.md"}


#: Pages whose commands take more than ten seconds, or are README's again; `make conformance` runs them.
LONG = {
    "adapters.md",
    "any-pipeline.md",
    "conformance.md",
    "control.md",
    "devices.md",
    "exporting.md",
    "index.md",
    "less-work.md",
    "models.md",
    "pictures.md",
    "prompts.md",
    "safety.md",
    "steps.md",
    "transformers.md",
    "writing-a-scheduler.md",
    "writing-a-transform.md",
}


def with_examples() -> list[Any]:
    shown = re.compile(r"^(```python$|\$ perfuse )", re.MULTILINE)
    pages = [p for p in PAGES if p.name not in NOT_RUN and shown.search(p.read_text("utf-8"))]
    long = pytest.mark.exhaustive
    return [
        pytest.param(page, id=page.stem, marks=[long] if page.name in LONG else [])
        for page in pages
    ]


@pytest.mark.export
@pytest.mark.slow
@pytest.mark.parametrize("page", with_examples())
def test_the_examples_run(page: Path, tmp_path: Path) -> None:
    check_examples(page, tmp_path)


def test_every_page_is_in_the_navigation() -> None:
    listed = re.findall(r": (\S+\.md)$", (ROOT / "mkdocs.yml").read_text("utf-8"), re.MULTILINE)
    assert sorted(listed) == [page.name for page in PAGES]


@pytest.mark.parametrize(
    "page", [*PAGES, ROOT / "README.md", ROOT / "CONTRIBUTING.md"], ids=lambda page: page.stem
)
def test_links_and_pictures_are_there(page: Path) -> None:
    """The build of the pages checks links between them; pictures and the other files it does not."""
    links = re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text("utf-8"))
    for link in links:
        assert "://" in link or (page.parent / link).exists(), link


def test_every_public_name_has_its_place() -> None:
    import perfuse
    import perfuse.spec
    from perfuse.plugins import host

    page = (ROOT / "docs/python-api.md").read_text("utf-8")
    shown = re.findall(r"^::: perfuse\.(?:\w+\.)+(\w+)$", page, re.MULTILINE)
    made = host().pipelines()  # their classes are made of manifests, and said in a sentence
    public = set(perfuse.__all__) - {"PerfuseError"} - set(made)  # the errors have a section
    assert public - set(shown) == set(), "lacking in docs/python-api.md"
    public |= set(perfuse.spec.__all__)  # what plugins take from there may have a place
    assert set(shown) - public == set(), "in docs/python-api.md, and not public"


def test_every_scheduler_is_listed() -> None:
    from perfuse.schedulers import SCHEDULERS, SHORT_NAMES

    page = (ROOT / "docs/models.md").read_text("utf-8")
    rows = dict(re.findall(r"^\| `([\w+-]+)` \| `(\w+)` \|", page, re.MULTILINE))
    assert set(rows.values()) == set(SCHEDULERS)
    assert all(SHORT_NAMES[short] == name for short, name in rows.items())


def test_every_guider_is_listed() -> None:
    from perfuse.builtin import perfuse_guiders

    page = (ROOT / "docs/guidance.md").read_text("utf-8")
    rows = re.findall(r"^\| `([\w-]+)` \| `(\w+)` \|", page, re.MULTILINE)
    known = {(one.name, one.impl.partition(":")[2]) for one in perfuse_guiders()}
    assert sorted(rows) == sorted(known)


def test_levels_are_those_of_the_suite() -> None:
    from perfuse_conformance.judge.levels import MEANING

    page = (ROOT / "docs/conformance.md").read_text("utf-8")
    for level, meaning in MEANING.items():
        assert level == "none" or f"| {level} | {meaning} |" in page


def test_the_drawing_of_the_house_has_every_room() -> None:
    """``CONTRIBUTING.md`` draws the folders that there are."""
    text = (ROOT / "CONTRIBUTING.md").read_text("utf-8")
    drawing = text.partition("core/perfuse   ")[2].partition("```")[0]
    rooms = {
        name for line in drawing.splitlines() for name in re.findall(r"\w+", line[:24])
    }  # the first column
    core = ROOT / "core/perfuse"
    there = {folder.name for folder in core.iterdir() if (folder / "__init__.py").exists()}
    assert there <= rooms
    roots = {"backends", "exporters", "conformance", "plugins", "tests", "benchmarks", "docs"}
    assert roots <= rooms
