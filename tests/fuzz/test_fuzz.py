"""Whatever a file or a command line holds: a result or an error of one line, soon, and nothing else.

CI tries the same few inputs each time; ``make fuzz`` tries others until it is stopped.
"""

import io
import json
import lzma
import os
import resource
import shutil
import signal
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.fuzz.hostile import altered, command_lines, damaged, templates, toml_settings
from tests.single_files import make_folder, write_single_file

from perfuse.cli import main
from perfuse.errors import PerfuseError
from perfuse.memory import peak_memory
from perfuse.plugins.allowance import Allowance, delay
from perfuse.plugins.importing import Stopped
from perfuse.sources.chat_template import chat_template
from perfuse_conformance.cases.checkpoint_parts import write_json

Make = Callable[[str], Path]
Export = Callable[[str, str], Path]

#: Seconds that one input may take, and bytes of memory beyond what the process had.
_SECONDS, _BYTES = 30, 2 * 10**9
#: What a request may need at least; so much is refused by its price, before it is tried.
_PRICE = "500MB"
#: transformers imports torchao where it is installed, as ExecuTorch has it, and that complains.
_OTHERS = ("torchao", "natively supported by torch.compile")
#: About what a process needs that imports torch and an engine and runs a small model.
_PLAIN = 10**9


def some(*names: str, more: Sequence[str] = ()) -> list[Any]:
    """Parameters, of which CI tries some."""
    return [*names, *(pytest.param(name, marks=pytest.mark.exhaustive) for name in more)]


#: For what takes longer: a quarter of the inputs.
costly = settings(max_examples=max(1, settings.default.max_examples // 4))
#: What the inputs write, and folders that they may write to.
WRITTEN: list[str] = []
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
_PLACES = ("os.mkdir", "os.remove", "os.rmdir", "os.rename", "os.chmod")


def watch(event: str, arguments: tuple[Any, ...]) -> None:
    """Note what is written, made, renamed or removed."""
    if event == "open" and isinstance(arguments[2], int) and arguments[2] & _WRITES:
        WRITTEN.append(os.path.abspath(os.fsdecode(arguments[0])) if named(arguments[0]) else "")
    elif event in _PLACES and arguments[-1] == -1:  # not beside an open folder, which was noted
        WRITTEN.extend(os.path.abspath(os.fsdecode(one)) for one in arguments if named(one))


def named(value: object) -> bool:
    return isinstance(value, str | bytes | os.PathLike)


sys.addaudithook(watch)


@contextmanager
def inside(*targets: object) -> Iterator[None]:
    """Nothing is written but in the folders of this run, and to what was named."""
    caches = [os.environ["PERFUSE_TEST_CACHE"], tempfile.gettempdir(), sys.pycache_prefix or "-"]
    own = [os.path.realpath(one) for one in (*caches, PLACE[0], os.devnull)]
    given = [os.path.abspath(os.path.expanduser(str(one).split("=")[-1])) for one in targets]
    WRITTEN.clear()
    yield
    for path in filter(None, dict.fromkeys(WRITTEN)):
        real = os.path.realpath(path)
        fits = any(os.path.commonpath([real, one]) == one for one in own)
        assert fits or "__pycache__" in path or path in given, path


#: The folder of this module's tests, and how many inputs were tried.
PLACE, INPUTS = [""], [0]


def delay_of_children() -> float:
    """For how long the process that this one started waited for a processor, the longest of several."""
    try:
        children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
    except OSError:
        return 0.0
    return max(map(delay, children), default=0.0)


@contextmanager
def in_time() -> Iterator[None]:
    """It ends soon, on a machine that has time for it."""
    allowed, began = Allowance("self", _SECONDS), time.monotonic()

    def stop(*_: Any) -> None:
        left = max(allowed.left(), _SECONDS - (time.monotonic() - began) + delay_of_children())
        if left > 0:
            signal.setitimer(signal.ITIMER_REAL, max(left, 0.1))
        else:
            raise Stopped(signal.SIGALRM)  # which no guard takes for a fault of a plugin

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, _SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@contextmanager
def in_memory() -> Iterator[None]:
    """This process never holds much more than it does now, where the system tells."""
    try:
        Path("/proc/self/clear_refs").write_text("5")  # the peak is what there is
    except OSError:
        yield
        return
    before = peak_memory()
    yield
    after = peak_memory()
    assert before is not None and after is not None
    assert after - before < _BYTES, f"{(after - before) / 1e9:.1f} GB more"


@contextmanager
def tried(*targets: object) -> Iterator[None]:
    """One input: it ends soon, needs little, and writes nothing but to what was named."""
    INPUTS[0] += 1
    with in_memory(), in_time(), inside(*targets):
        yield


def check(*arguments: object) -> None:
    """Run a command line: no traceback, no hang, no control character, no long line."""
    environment = {"PERFUSE_BACKEND": "torch:cpu", "HF_HUB_OFFLINE": "1"}
    environment |= {"PERFUSE_TRACEBACK": "1", "PERFUSE_MEMORY_LIMIT": _PRICE}
    with tried(*arguments):
        result = CliRunner().invoke(main, [str(one) for one in arguments], env=environment)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code in (0, 1, 2)
    if b"\x89PNG" not in result.stdout_bytes:
        shown = result.stdout + result.stderr
        assert all(c.isprintable() or c == "\n" for c in shown), repr(shown)[:500]
        assert max(map(len, shown.splitlines()), default=0) < 4000 or "--json" in arguments
    if result.exit_code:
        said = ("warning: ", " names model ", " names backend ", " names transforms ", *_OTHERS)
        lines = [line for line in result.stderr.splitlines() if not any(s in line for s in said)]
        # With --for the status repeats what is on standard output: one of the parts does not run.
        verdict = (
            not lines
            and "--for" in " ".join(map(str, arguments))
            and "does not run" in result.stdout
        )
        assert verdict or len(lines) == 1 or lines[0].startswith("Usage: "), result.stderr


@pytest.fixture(autouse=True)
def counted(request: pytest.FixtureRequest) -> Iterator[None]:
    """How many inputs a test tried is told; no process that they started held much."""
    before = INPUTS[0]
    yield
    request.node.user_properties.append(("inputs", INPUTS[0] - before))
    children = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
    assert children < _BYTES + _PLAIN, f"a process held {children / 1e9:.1f} GB"


@pytest.fixture(scope="module")
def copies(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("copies")
    PLACE[0] = str(folder)
    return folder


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


#: A checkpoint of every family, and of what stands beside it.
_KINDS = some(
    "sd1",
    "flux",
    "z-image",
    more=[
        "sdxl",
        "sd3",
        "pixart-sigma",
        "klein",
        "qwen-image",
        "sana",
        "chroma",
        "hunyuan-dit",
        "control",
        "union",
    ]
    + ["ip-adapter", "unclip", "depth-estimated", "adapter", "sd1-checked", "upscale"],
)
_WEIGHTS = (".safetensors", ".model")


def some_change(data: Any, path: Path) -> bytes:
    """A file's content, changed as one who knows its format would, or as a disk does."""
    content = path.read_bytes()
    if path.suffix != ".json":
        return bytes(data.draw(damaged(content, upto=500)))
    how = altered(json.loads(content)).map(as_json) | damaged(content)
    return bytes(data.draw(how))


@pytest.mark.parametrize("kind", _KINDS)
@given(data=st.data())
def test_a_checkpoint_s_files(checkpoint: Make, copies: Path, kind: str, data: Any) -> None:
    folder = copied(checkpoint(kind), copies)
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    path = data.draw(st.sampled_from([one for one in files if one.suffix not in _WEIGHTS]))
    with holding(path, some_change(data, path)):
        check("inspect", "--model", folder)


#: Kinds that are drawn with, at a size that is soon drawn.
_DRAWN = some(
    "tiny",
    more=[
        "words",
        "flux",
        "sd3",
        "pixart-sigma",
        "z-image",
        "klein",
        "qwen-image",
        "sana",
        "chroma",
    ],
)


@pytest.mark.parametrize("kind", _DRAWN)
@costly
@given(data=st.data())
def test_a_checkpoint_that_is_drawn_with(
    checkpoint: Make, copies: Path, kind: str, data: Any
) -> None:
    """Altered so little that most of them open: their networks, schedules and words are made."""
    folder, output = copied(checkpoint(kind), copies), copies / "drawn.png"
    files = sorted(folder.glob("*/*.json"))
    path = data.draw(st.sampled_from([one for one in files if one.stat().st_size < 100_000]))
    words = [] if kind == "tiny" else ["red"]
    with holding(path, as_json(data.draw(altered(json.loads(path.read_bytes()))))):
        check("generate", *words, "--model", folder, "--steps", 1, "--output", output)


@pytest.mark.exhaustive
@costly
@given(template=templates())
def test_a_chat_template(checkpoint: Make, copies: Path, template: str) -> None:
    folder = copied(checkpoint("z-image"), copies) / "tokenizer"
    (folder / "chat_template.jinja").write_text(template, "utf-8")
    try:
        with tried():
            chat_template(folder, {"enable_thinking": False})
    except PerfuseError as exc:
        assert len(str(exc)) < 4000
    finally:
        (folder / "chat_template.jinja").unlink()


@given(data=st.data())
def test_a_weights_file(checkpoint: Make, copies: Path, data: Any) -> None:
    folder = copied(checkpoint("tiny"), copies)
    (path,) = (folder / "unet").glob("*.safetensors")
    with holding(path, data.draw(damaged(path.read_bytes(), upto=500))):
        check("generate", "--model", folder, "--steps", 1, "--output", copies / "weights.png")


@pytest.mark.export
@costly
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


def in_folder(folder: Path, *arguments: object) -> None:
    """Run a command line in a folder, so that relative names lie there."""
    folder.mkdir(exist_ok=True)
    before = Path.cwd()
    os.chdir(folder)
    try:
        check(*arguments)
    finally:
        os.chdir(before)


@given(line=command_lines())
def test_a_command_line(checkpoint: Make, copies: Path, line: list[str]) -> None:
    in_folder(copies / "line", "generate", "--model", checkpoint("tiny"), "--steps", 1, *line)


@pytest.mark.parametrize(
    "command",
    some(
        "inspect", "export", more=["bench", "merge", "graphs", "conformance", "tune", "calibrate"]
    ),
)
@given(data=st.data())
def test_another_command_line(checkpoint: Make, copies: Path, command: str, data: Any) -> None:
    line = data.draw(command_lines(command))
    takes_words = command in ("tune", "calibrate")
    model = ("--model", checkpoint("words" if takes_words else "tiny"))
    usual = {"bench": ("--steps", 1, "--pictures", 1), "graphs": ("add", "--to", "onnx")}
    usual["conformance"] = ("--backend", "torch:cpu", "--level", "L0")
    usual["tune"] = ("--backend", "torch:cpu", "--time", "1s", "--steps", 1)
    usual["calibrate"] = ("--precision", "unet=w8a8", "--steps", 2, "--output", "calibration.json")
    given = usual.get(command, ())
    if command == "graphs":
        in_folder(copies / "line", "graphs", *given, *model, *line)
    else:
        in_folder(copies / "line", command, *model, *given, *line)


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


# ── Files beside a checkpoint ───────────────────────────────────────────────────────────────────


def safetensors(data: Any, content: bytes) -> bytes:
    """A safetensors file whose header is altered, or whose bytes are."""
    if data.draw(st.booleans()):
        return bytes(data.draw(damaged(content, upto=500)))
    length = int.from_bytes(content[:8], "little")
    header = as_json(data.draw(altered(json.loads(content[8 : 8 + length]))))
    return len(header).to_bytes(8, "little") + header + content[8 + length :]


@pytest.fixture(scope="module")
def beside(checkpoint: Make, copies: Path) -> dict[str, Path]:
    """A LoRA, a textual inversion, an IP-Adapter and a single file, by the flag that takes each."""
    import numpy as np
    from safetensors.numpy import save_file

    layer = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
    lora = {
        f"{layer}.lora_A.weight": np.ones((2, 16), "f4"),
        f"{layer}.lora_B.weight": np.ones((16, 2), "f4"),
        f"{layer}.alpha": np.array(1, "f4"),
    }
    save_file(lora, copies / "lora.safetensors")
    save_file({"<w>": np.ones((1, 32), "f4")}, copies / "word.safetensors")
    adapter = checkpoint("ip-adapter") / "ip_adapters" / "plain.safetensors"
    shutil.copy(adapter, copies / "adapter.safetensors")
    return {
        "--lora": copies / "lora.safetensors",
        "--embedding": copies / "word.safetensors",
        "--ip-adapter": copies / "adapter.safetensors",
    }


@pytest.mark.parametrize("flag", some("--lora", more=["--embedding", "--ip-adapter"]))
@given(data=st.data())
def test_a_file_beside(
    checkpoint: Make, copies: Path, beside: dict[str, Path], flag: str, data: Any
) -> None:
    path, model = beside[flag], checkpoint("ip-adapter" if flag == "--ip-adapter" else "words")
    with holding(path, safetensors(data, path.read_bytes())):
        given = ("--model", model, flag, path, "--steps", 1, "--output", copies / "beside.png")
        check("generate", "red", *given)


_SD = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q"
_FLUX = "lora_unet_double_blocks_0_img_attn_qkv"
_XLABS = "double_blocks.0.processor.qkv_lora1"
_WHOLE = {"lora_down.weight": (2, 16), "lora_up.weight": (16, 2)}
#: What LoRAs are published in: the checkpoint, the layer, and each factor's shape.
_LAYOUTS: dict[str, tuple[str, str, dict[str, tuple[int, ...]]]] = {
    "kohya": ("words", _SD, {**_WHOLE, "alpha": ()}),
    "dora": ("words", _SD, {**_WHOLE, "dora_scale": (16, 1)}),
    "loha": ("words", _SD, {f"hada_w{n}_a": (16, 2) for n in "12"}),
    "lokr": ("words", _SD, {"lokr_w1": (2, 2), "lokr_w2": (8, 8)}),
    "flux": ("flux", _FLUX, {"lora_down.weight": (2, 32), "lora_up.weight": (96, 2)}),
    "xlabs": ("flux", _XLABS, {"down.weight": (2, 32), "up.weight": (96, 2)}),
}
_LAYOUTS["loha"][2].update({f"hada_w{n}_b": (2, 16) for n in "12"})


@pytest.mark.exhaustive
@pytest.mark.parametrize("layout", _LAYOUTS)
@given(data=st.data())
def test_a_lora_of_each_layout(checkpoint: Make, copies: Path, layout: str, data: Any) -> None:
    import numpy as np
    from safetensors.numpy import save_file

    kind, layer, factors = _LAYOUTS[layout]
    path = copies / f"{layout}.safetensors"
    given = ("generate", "red", "--model", checkpoint(kind), "--lora", path, "--steps", 1)
    given = (*given, "--output", copies / "lora.png")
    if not path.exists():
        save_file({f"{layer}.{n}": np.ones(s, "f4") for n, s in factors.items()}, path)
        whole = CliRunner().invoke(main, [str(one) for one in given])
        assert whole.exit_code == 0, whole.stderr
    with holding(path, safetensors(data, path.read_bytes())):
        check(*given)


@pytest.mark.exhaustive
@pytest.mark.parametrize("kind", ["tiny", "words"])
@costly
@given(data=st.data())
def test_a_checkpoint_through_diffusers(
    checkpoint: Make, copies: Path, kind: str, data: Any
) -> None:
    pytest.importorskip("diffusers")
    folder = copied(checkpoint(kind), copies)
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    path = data.draw(st.sampled_from([one for one in files if one.suffix not in _WEIGHTS]))
    words = [] if kind == "tiny" else ["red"]
    with holding(path, some_change(data, path)):
        check("inspect", "--model", folder, "--bridged")
        given = ("--steps", 1, "--output", copies / "bridged.png", "--quiet")
        check("generate", *words, "--model", folder, "--bridged", *given)


@pytest.fixture(scope="module")
def single(made_once: Callable[..., Path], copies: Path) -> dict[str, Path]:
    """A single-file checkpoint, and its UNet as a GGUF file."""
    gguf = pytest.importorskip("gguf")
    folder = made_once("single-files", "sd1", lambda place: make_folder(place, "sd1"))
    whole = write_single_file(folder, "sd1", copies / "whole.safetensors")
    writer = gguf.GGUFWriter(copies / "unet.gguf", "sd1")
    from safetensors.numpy import load_file

    for name, tensor in load_file(whole).items():
        writer.add_tensor(name, tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return {"safetensors": whole, "gguf": copies / "unet.gguf"}


@pytest.mark.exhaustive
@pytest.mark.parametrize("kind", ["safetensors", "gguf"])
@given(data=st.data())
def test_a_single_file(copies: Path, single: dict[str, Path], kind: str, data: Any) -> None:
    path = single[kind]
    content = path.read_bytes()
    changed = safetensors(data, content) if kind == "safetensors" else None
    with holding(path, changed or data.draw(damaged(content, upto=3000))):
        check("inspect", "--model", path)


@pytest.mark.exhaustive
@pytest.mark.export
@costly
@given(data=st.data())
def test_a_set_of_graphs(checkpoint: Make, copies: Path, data: Any) -> None:
    """An archive with other members, or other content in them."""
    pytest.importorskip("onnxruntime")
    model = ("--model", checkpoint("tiny"))
    sets = Path(os.environ["PERFUSE_CACHE"]) / "graphs"
    if not list(sets.rglob("unet-*.tar.xz")):
        given = ["graphs", "add", *map(str, model), "--to", "onnx"]
        assert CliRunner().invoke(main, given).exit_code == 0
    path = min(sets.rglob("unet-*.tar.xz"))
    with holding(path, data.draw(damaged(path.read_bytes()) | rebuilt(path))):
        check("graphs", "list")
        given = ("--backend", "onnxruntime:cpu", "--steps", 1, "--output", copies / "graphs.png")
        check("generate", *model, *given)


@st.composite
def rebuilt(draw: Any, path: Path) -> bytes:
    """An archive, one of whose JSON files is altered, or whose members have other names."""
    inner = io.BytesIO()
    with tarfile.open(path) as archive, tarfile.open(fileobj=inner, mode="w") as other:
        changed = draw(st.sampled_from([one.name for one in archive if "json" in one.name]))
        for one in archive:
            file = archive.extractfile(one)
            content = file.read() if file is not None else b""
            if one.name == changed:
                content = draw(altered(json.loads(content)).map(as_json))
                one.name = draw(st.sampled_from([one.name, one.name, "..", "/x", "a/../..", "."]))
                one.type = draw(st.sampled_from([tarfile.REGTYPE] * 3 + [tarfile.SYMTYPE]))
            one.size = len(content)
            other.addfile(one, io.BytesIO(content))
    return lzma.compress(inner.getvalue(), preset=0)


#: What ``perfuse calibrate`` writes.
_CALIBRATION = {
    "version": 1,
    "components": {
        "unet": {
            "scheme": "w8a8",
            "vectors": {"conv_in.weight": "0"},
            "kept": ["conv_out.weight"],
            "ranges": {"conv_in.weight": [-1.0, 1.0]},
            "error": 0.1,
            "prompts": ["red"],
            "steps": 2,
        }
    },
}


@pytest.mark.exhaustive
@given(data=st.data())
def test_a_calibration(checkpoint: Make, copies: Path, data: Any) -> None:
    path, content = copies / "calibration.json", json.dumps(_CALIBRATION).encode()
    path.write_bytes(data.draw(altered(_CALIBRATION).map(as_json) | damaged(content)))
    given = ("--model", checkpoint("words"), "--steps", 1, "--output", copies / "calibrated.png")
    transform = f"storage:scheme=w8a8,component=unet,calibration={path}"
    check("generate", "red", *given, "--transform", transform)


_MODULAR = {
    "_class_name": "StableDiffusionXLModularPipeline",
    "_blocks_class_name": "StableDiffusionXLAutoBlocks",
    "_diffusers_version": "0.42.0",
    "unet": [
        None,
        None,
        {
            "pretrained_model_name_or_path": "nowhere",
            "subfolder": "unet",
            "type_hint": ["diffusers", "UNet2DConditionModel"],
            "revision": None,
            "variant": None,
        },
    ],
}


@pytest.mark.exhaustive
@given(data=st.data())
def test_a_modular_index(copies: Path, data: Any) -> None:
    pytest.importorskip("diffusers")
    folder = copies / "modular"
    folder.mkdir(exist_ok=True)
    index = folder / "modular_model_index.json"
    content = json.dumps(_MODULAR).encode()
    how = altered(_MODULAR).map(as_json) | damaged(content)
    index.write_bytes(data.draw(how))
    check("inspect", "--model", folder)
