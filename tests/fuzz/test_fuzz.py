"""Whatever a file or a command line holds: a result or an error of one line, soon, and nothing else.

CI tries the same few inputs each time; ``make fuzz`` tries others until it is stopped.
"""

import json
import os
import resource
import shutil
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from tests.fuzz.hostile import altered, command_lines, damaged, toml_settings

from perfuse.cli import main
from perfuse_conformance.cases.checkpoint_parts import write_json

Make = Callable[[str], Path]
Export = Callable[[str, str], Path]

#: Seconds that one input may take, and bytes of memory beyond what plain runs need.
_SECONDS, _BYTES = 30, 2 * 10**9


class Hangs(BaseException):
    """An input took too long."""


@contextmanager
def in_time() -> Iterator[None]:
    def stop(*_: Any) -> None:
        raise Hangs

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(_SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def check(*arguments: object) -> None:
    """Run a command line: no traceback, no hang, no control character, no long line."""
    environment = {"PERFUSE_BACKEND": "torch:cpu", "HF_HUB_OFFLINE": "1"}
    with in_time():
        result = CliRunner().invoke(main, [str(one) for one in arguments], env=environment)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code in (0, 1, 2)
    if b"\x89PNG" not in result.stdout_bytes:
        shown = result.stdout + result.stderr
        assert all(c.isprintable() or c == "\n" for c in shown), repr(shown)[:500]
        assert max(map(len, shown.splitlines()), default=0) < 4000 or "--json" in arguments
    if result.exit_code:
        said = ("warning: ", " names model ", " names backend ", " names transforms ")
        lines = [line for line in result.stderr.splitlines() if not any(s in line for s in said)]
        assert len(lines) == 1 or lines[0].startswith("Usage: "), result.stderr


@pytest.fixture(autouse=True)
def within_memory() -> Iterator[None]:
    """The process never holds much more than it did."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    yield
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before < _BYTES


@pytest.fixture(scope="module")
def copies(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("copies")


def copied(original: Path, copies: Path) -> Path:
    folder = copies / original.name
    if not folder.exists():
        shutil.copytree(original, folder)
    return folder


@contextmanager
def holding(path: Path, content: bytes) -> Iterator[None]:
    """A file with another content for a while."""
    before = path.read_bytes()
    path.write_bytes(content)
    try:
        yield
    finally:
        path.write_bytes(before)


def as_json(value: Any) -> bytes:
    return json.dumps(value).encode()


_PARTS = (
    "model_index.json",
    "unet/config.json",
    "vae/config.json",
    "text_encoder/config.json",
    "scheduler/scheduler_config.json",
    "tokenizer/tokenizer_config.json",
    "tokenizer/special_tokens_map.json",
)


@pytest.mark.parametrize("name", _PARTS)
@given(data=st.data())
def test_a_checkpoint_s_json(checkpoint: Make, copies: Path, name: str, data: Any) -> None:
    folder = copied(checkpoint("sd1"), copies)
    path = folder / name
    content = path.read_bytes()
    how = altered(json.loads(content)).map(as_json) | damaged(content)
    with holding(path, data.draw(how)):
        check("inspect", "--model", folder)


@given(data=st.data())
def test_a_checkpoint_that_is_drawn_with(checkpoint: Make, copies: Path, data: Any) -> None:
    """Altered so little that most of them open: their networks and schedules are made."""
    folder = copied(checkpoint("tiny"), copies)
    path = folder / data.draw(
        st.sampled_from(["unet/config.json", "scheduler/scheduler_config.json"])
    )
    output = copies / "drawn.png"
    with holding(path, as_json(data.draw(altered(json.loads(path.read_bytes()))))):
        check("generate", "--model", folder, "--steps", 1, "--output", output)


@given(data=st.data())
def test_a_weights_file(checkpoint: Make, copies: Path, data: Any) -> None:
    folder = copied(checkpoint("tiny"), copies)
    (path,) = (folder / "unet").glob("*.safetensors")
    with holding(path, data.draw(damaged(path.read_bytes(), upto=500))):
        check("generate", "--model", folder, "--steps", 1, "--output", copies / "weights.png")


@pytest.mark.export
@given(data=st.data())
def test_a_manifest(exported: Export, copies: Path, data: Any) -> None:
    pytest.importorskip("onnxruntime")
    folder = copied(exported("tiny", "onnx"), copies)
    path = folder / "perfuse.json"
    with holding(path, as_json(data.draw(altered(json.loads(path.read_bytes()))))):
        check("inspect", "--model", folder)
        given = ("--backend", "onnxruntime:cpu", "--steps", 1, "--output", copies / "manifest.png")
        check("generate", "--model", folder, *given)


@given(text=toml_settings())
def test_settings(checkpoint: Make, copies: Path, text: str) -> None:
    before = Path.cwd()
    os.chdir(copies)
    try:
        Path("perfuse.toml").write_text(text, "utf-8")
        check("inspect", "--model", checkpoint("tiny"))
    finally:
        Path("perfuse.toml").unlink()
        os.chdir(before)


@given(line=command_lines())
def test_a_command_line(checkpoint: Make, copies: Path, line: list[str]) -> None:
    folder = copies / "line"
    folder.mkdir(exist_ok=True)
    before = Path.cwd()
    os.chdir(folder)
    try:
        check("generate", "--model", checkpoint("tiny"), "--steps", 1, *line)
    finally:
        os.chdir(before)


@given(data=st.data())
def test_a_picture(checkpoint: Make, copies: Path, data: Any) -> None:
    picture = copies / "picture.png"
    if not picture.exists():
        check("generate", "--model", checkpoint("tiny"), "--steps", 1, "--output", picture)
    with holding(picture, data.draw(damaged(picture.read_bytes()))):
        check("inspect", picture)


@given(data=st.data())
def test_what_a_picture_says_of_itself(checkpoint: Make, copies: Path, data: Any) -> None:
    from PIL import Image
    from PIL.PngImagePlugin import PngInfo

    picture = copies / "said.png"
    if not picture.exists():
        check("generate", "--model", checkpoint("tiny"), "--steps", 1, "--output", picture)
    with Image.open(picture) as image:
        told, info = json.loads(image.info["perfuse"]), PngInfo()
        info.add_text("perfuse", json.dumps(data.draw(altered(told))))
        image.save(copies / "altered.png", pnginfo=info)
    check("inspect", copies / "altered.png")
    again = ("--from", copies / "altered.png", "--output", copies / "again.png", "--offline")
    check("generate", *again, "--steps", 1)


@given(data=st.data())
def test_results_and_expectations(copies: Path, data: Any) -> None:
    schema = {"schema_version": "1.0", "results": [{"id": "host/manifest", "status": "PASS"}]}
    write_json(copies / "results.json", data.draw(altered(schema)))
    check("conformance", "report", copies / "results.json", "--output", copies / "report")
