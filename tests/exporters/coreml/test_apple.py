"""Apple's dialect of Core ML: what is written, what is read, and that both draw the same picture."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from PIL import Image
from tests.conftest import needs_exporter

from perfuse import DiffusionPipeline
from perfuse.cli import main
from perfuse.errors import ArtifactError, ExportError, InputError
from perfuse.sources.checkpoint import Checkpoint
from perfuse.sources.manifest import Manifest
from perfuse.sources.opening import open_model

torch = pytest.importorskip("torch")
pytest.importorskip("coremltools")

from perfuse_exporters.coreml.apple import adapted, arrange
from perfuse_exporters.coreml.mlpackage import read_interface

pytestmark = pytest.mark.export

Make = Callable[[str], Path]
PROMPT = "a red circle"
#: Where coremltools puts the program of a package.
PROGRAM = "Data/com.apple.CoreML/model.mlmodel"


def perfuse(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(one) for one in arguments])


@pytest.fixture(scope="module")
def written(checkpoint: Make, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small Stable Diffusion as ``perfuse export --dialect apple`` writes it."""
    folder = tmp_path_factory.mktemp("apple") / "words"
    source = ("--model", checkpoint("words"), "--to", "coreml", "--output", folder)
    result = perfuse("export", *source, "--dialect", "apple")
    assert result.exit_code == 0, result.output
    return folder


@pytest.fixture
def foreign(written: Path, tmp_path: Path) -> Path:
    """The same as Apple's own converter leaves it: models and a vocabulary, nothing else."""
    folder = tmp_path / "foreign"
    shutil.copytree(written, folder)
    (folder / "perfuse.json").unlink()
    shutil.rmtree(folder / "scheduler")
    shutil.rmtree(folder / "tokenizer")
    return folder


def package(folder: Path, component: str) -> Path:
    return folder / f"Stable_Diffusion_version_words_{component}.mlpackage"


# Writing


@pytest.mark.exhaustive
def test_names_ranks_and_types(written: Path) -> None:
    """What Apple's Python asserts of each package, and what its Swift looks for by name."""
    text, unet, decoder, encoder = (
        read_interface(package(written, name))
        for name in ("text_encoder", "unet", "vae_decoder", "vae_encoder")
    )
    assert text.inputs == {"input_ids": ((1, 77), "float32")}
    assert text.outputs["last_hidden_state"] == ((1, 77, 32), "float32")
    assert text.outputs["hidden_embeds"] == ((1, 77, 32), "float32")
    assert text.outputs["pooled_outputs"] == ((1, 32), "float32")
    assert unet.inputs == {
        "sample": ((2, 4, 8, 8), "float16"),
        "timestep": ((2,), "float16"),
        "encoder_hidden_states": ((2, 32, 1, 77), "float16"),
    }
    assert unet.outputs == {"noise_pred": ((2, 4, 8, 8), "float32")}
    assert decoder.inputs == {"z": ((1, 4, 8, 8), "float32")}
    assert decoder.outputs == {"image": ((1, 3, 16, 16), "float32")}
    assert encoder.inputs == {"x": ((1, 3, 16, 16), "float32")}
    assert encoder.outputs == {"latent": ((1, 8, 8, 8), "float32")}


def test_files(written: Path, checkpoint: Make) -> None:
    manifest = Manifest.read(written)
    manifest.verify(written)
    assert manifest.components["unet"].file == package(written, "unet").name
    assert manifest.components["unet"].options["dialect"] == "apple"
    for name in ("vocab.json", "merges.txt"):  # where Swift looks for them
        original = checkpoint("words") / "tokenizer" / name
        assert (written / name).read_bytes() == original.read_bytes()
    assert not any((written / name).exists() for name in manifest.components)


def component(path: Path, name: str, **static: int) -> Any:
    sizes = {"batch": 1, "latent_height": 8, "latent_width": 8, "height": 16, "width": 16}
    source = Checkpoint.open(path)
    dims = source.spec.components[name].signature.dims
    known = {**sizes, "sequence": 77, **static}
    one = source.component(name, static={dim: known[dim] for dim in dims})
    return replace(one, options={"dialect": "apple"})


def test_the_adapted_unet_of_xl_computes_the_same(checkpoint: Make) -> None:
    one = component(checkpoint("sdxl"), "unet", batch=2)
    module = one.build()
    theirs, wrapped = adapted(one, module)
    shapes = {t.name: (t.dtype, t.shape) for t in theirs.signature.inputs}
    assert shapes["encoder_hidden_states"] == ("float16", (2, 64, 1, 77))
    assert shapes["time_ids"] == ("float16", (2, 6))
    assert shapes["text_embeds"] == ("float16", (2, 32))
    assert theirs.signature.output_names == ("noise_pred",)
    inputs = [torch.rand(t.shape) for t in one.signature.inputs]
    with torch.no_grad():
        expected = module(*inputs)[0]
        states = inputs[2].transpose(1, 2).unsqueeze(2)
        found = wrapped(inputs[0], inputs[1], states, *inputs[3:])[0]
    assert torch.equal(found, expected)


def test_the_text_encoder_of_xl(checkpoint: Make) -> None:
    one = component(checkpoint("sdxl"), "text_encoder_2")
    theirs, wrapped = adapted(one, one.build())
    assert theirs.signature.inputs[0].dtype == "float32"
    assert theirs.signature.output_names == (
        "last_hidden_state",
        "hidden_embeds",
        "pooled_outputs",
    )
    ids = torch.randint(0, 500, (1, 77))
    with torch.no_grad():
        for found, expected in zip(wrapped(ids.float()), one.build()(ids), strict=True):
            assert torch.equal(found, expected)


@pytest.mark.parametrize(("precision", "dtype"), [("float16", "float16"), ("float32", "float")])
def test_the_autoencoder_takes_what_it_computes_in(
    precision: str, dtype: str, checkpoint: Make
) -> None:
    one = replace(component(checkpoint("words"), "vae_decoder"), precision=precision)
    theirs, _ = adapted(one, torch.nn.Identity())
    assert [(t.name, t.dtype) for t in theirs.signature.inputs] == [("z", dtype)]


def test_what_apples_runtimes_do_not_have(checkpoint: Make) -> None:
    with pytest.raises(ExportError, match=r"unet \(UNet2DModel.*Stable Diffusion 1, 2 and XL"):
        adapted(component(checkpoint("tiny"), "unet"), torch.nn.Identity())
    with pytest.raises(ExportError, match=r"with timestep_cond\)"):
        adapted(component(checkpoint("lcm"), "unet"), torch.nn.Identity())
    with pytest.raises(ExportError, match="for a batch of 4; its runtimes call it with 1"):
        adapted(component(checkpoint("words"), "text_encoder", batch=4), torch.nn.Identity())


@pytest.mark.parametrize("format", ["onnx", "openvino"])
def test_formats_without_the_dialect(format: str, checkpoint: Make, tmp_path: Path) -> None:
    needs_exporter(format)
    command = ("export", "--model", checkpoint("tiny"), "--output", tmp_path / "out")
    result = perfuse(*command, "--to", format, "--dialect", "apple")
    assert result.exit_code == 2
    assert f"The {format} exporter was given the option dialect; it has none" in result.output
    assert not (tmp_path / "out").exists()


def test_where_two_chunks_and_another_tokenizer_go(tmp_path: Path) -> None:
    for chunk in (1, 2):
        (tmp_path / "unet" / f"model_chunk{chunk}.mlpackage").mkdir(parents=True)
    (tmp_path / "tokenizer").mkdir()
    model = {"vocab": {"é</w>": 0}, "merges": [["a", "b"], "c d"]}
    (tmp_path / "tokenizer" / "tokenizer.json").write_text(json.dumps({"model": model}))
    files = {"unet": tmp_path / "unet" / "model_chunk1.mlpackage"}
    files = arrange(tmp_path, {}, files, model="acme/sd-1.5")
    name = "Stable_Diffusion_version_acme_sd-1.5_unet_chunk{}.mlpackage"
    assert files == {"unet": tmp_path / name.format(1)}
    assert (tmp_path / name.format(2)).is_dir()
    assert not (tmp_path / "unet").exists()
    assert json.loads((tmp_path / "vocab.json").read_text("utf-8")) == {"é</w>": 0}
    assert (tmp_path / "merges.txt").read_text("utf-8") == "#version: 0.2\na b\nc d\n"


def test_latents_that_apples_runtimes_scale_otherwise(
    foreign: Path, checkpoint: Make, tmp_path: Path
) -> None:
    """They know one factor; the package notes the model's, which is what it is read with."""
    main = tmp_path / "out" / "vae_decoder" / "model.mlpackage"
    main.parent.mkdir(parents=True)
    shutil.move(package(foreign, "vae_decoder"), main)
    one = component(checkpoint("words"), "vae_decoder")
    config = {**one.spec.config, "scaling_factor": 1.5, "shift_factor": 0.25}
    components = {"vae_decoder": replace(one, spec=replace(one.spec, config=config))}
    with pytest.warns(
        UserWarning, match=r"scaled by 1\.5; Apple's runtimes divide them by 0\.18215"
    ):
        arrange(tmp_path / "out", components, {"vae_decoder": main}, model="words")
    shutil.move(package(tmp_path / "out", "vae_decoder"), foreign)
    latents = open_model(foreign).spec.latents
    assert latents is not None
    assert (latents.scaling_factor, latents.shift_factor, latents.downscale) == (1.5, 0.25, 2)
    file = package(foreign, "vae_decoder") / PROGRAM
    file.write_bytes(file.read_bytes().replace(b'"scaling_factor": 1.5', b'"scaling_factor": {} '))
    with pytest.raises(ArtifactError, match="says of its latents"):
        open_model(foreign)


# Reading


def test_a_folder_of_apples_draws_the_same_picture(
    foreign: Path, checkpoint: Make, tmp_path: Path
) -> None:
    """Interpreted: the saved packages on this machine's processor, not on Core ML."""
    common = ("generate", PROMPT, "--steps", 3, "--guidance", 3, "--seed", 0)
    files = ("--model", foreign, "--scheduler-from", checkpoint("words"))
    found = perfuse(
        *common, *files, "--backend", "coreml-interpreter", "--output", tmp_path / "a.png"
    )
    assert found.exit_code == 0, found.output
    reference = ("--model", checkpoint("words"), "--backend", "torch:cpu")
    result = perfuse(*common, *reference, "--output", tmp_path / "b.png")
    assert result.exit_code == 0, result.output
    one, other = (np.asarray(Image.open(tmp_path / name), np.int16) for name in ("a.png", "b.png"))
    assert np.abs(one - other).max() <= 1  # its inputs are rounded to float16
    assert other.std() > 10


def test_what_a_folder_of_apples_is_read_as(foreign: Path, checkpoint: Make) -> None:
    artifact = open_model(foreign, scheduler_from=checkpoint("words"))
    original = Checkpoint.open(checkpoint("words")).spec
    spec = artifact.spec
    assert spec.class_name == original.class_name
    assert spec.latents == original.latents
    assert dict(spec.scheduler) == dict(original.scheduler)
    assert spec.default_size == original.default_size
    for name, component in original.components.items():
        assert spec.components[name].signature == component.signature
    assert artifact.tokenizer("tokenizer")(PROMPT).input_ids.shape == (1, 77)
    with pytest.raises(ArtifactError, match="another tool wrote it"):
        artifact.manifest.verify(foreign)


def test_the_scheduler_that_lies_beside_the_models(foreign: Path, checkpoint: Make) -> None:
    assert not open_model(foreign).spec.scheduler
    with pytest.raises(InputError, match="has no scheduler config.*--scheduler-from CHECKPOINT"):
        DiffusionPipeline.from_pretrained(foreign, backend="coreml-interpreter")
    shutil.copytree(checkpoint("words") / "scheduler", foreign / "scheduler")
    assert open_model(foreign).spec.scheduler["_class_name"] == "DDIMScheduler"


def test_reading_loads_neither_torch_nor_an_engine(foreign: Path) -> None:
    program = (
        "import sys; from perfuse.run.pipeline import open_model; open_model(sys.argv[1]);"
        "print({'torch', 'coremltools', 'transformers'} & set(sys.modules))"
    )
    command = [sys.executable, "-c", program, str(foreign)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_inspect_names_what_is_there(foreign: Path) -> None:
    result = perfuse("inspect", "--model", foreign)
    assert result.exit_code == 0, result.output
    assert "schedule   none named; give --scheduler-from" in result.output
    assert "unet  UNet2DConditionModel  coreml float32" in result.output
    assert "0.0 MB" not in result.output


def compiled(
    folder: Path, *, xl: bool = False, encoder: bool = False, batch: int = 2, length: int = 77
) -> Path:
    """What ``coremlcompiler`` leaves, as far as it can be read without Core ML."""

    def write(name: str, inputs: dict[str, Any], outputs: dict[str, Any]) -> None:
        def schema(ports: dict[str, Any]) -> list[dict[str, str]]:
            return [
                {"name": n, "shape": json.dumps(list(shape)), "dataType": dtype}
                for n, (shape, dtype) in ports.items()
            ]

        (folder / f"{name}.mlmodelc").mkdir(parents=True)
        metadata = [
            {
                "inputSchema": schema(inputs),
                "outputSchema": schema(outputs),
                "computePrecision": "Mixed (Float16, Float32, Int32)",
            }
        ]
        (folder / f"{name}.mlmodelc" / "metadata.json").write_text(json.dumps(metadata))

    half, full = "Float16", "Float32"
    width = 2048 if xl else 1024
    states = "hidden_embeds" if xl else "last_hidden_state"
    for name in ("TextEncoder", "TextEncoder2")[: 2 if xl else 1]:
        outputs = {states: ((), full), "pooled_outputs": ((), full)}
        write(name, {"input_ids": ((1, length), full)}, outputs)
    more = {"text_embeds": ((batch, 1280), half), "time_ids": ((12,), half)} if xl else {}
    inputs = {
        "sample": ((batch, 4, 96, 64), half),
        "timestep": ((batch,), half),
        "encoder_hidden_states": ((batch, width, 1, 77), half),
        **more,
    }
    write("Unet", inputs, {"noise_pred": ((), full)})
    write("VAEDecoder", {"z": ((1, 4, 96, 64), half)}, {"image": ((), full)})
    if encoder:
        write("VAEEncoder", {"x": ((1, 3, 384, 256), half)}, {"latent": ((), full)})
    vocab = {"!": 0, "!</w>": 1, "a</w>": 2, "<|startoftext|>": 3, "<|endoftext|>": 4}
    (folder / "vocab.json").write_text(json.dumps(vocab))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    return folder


def test_models_that_are_compiled_already(
    tmp_path: Path, checkpoint: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = compiled(tmp_path / "Resources", length=32)
    artifact = open_model(folder, scheduler_from=checkpoint("words"))
    spec = artifact.spec
    assert spec.class_name == "StableDiffusionPipeline"
    assert spec.default_size == (768, 512)
    assert spec.latents is not None and spec.latents.scaling_factor == 0.18215
    assert artifact.manifest.components["unet"].precision == "float16"
    monkeypatch.setattr("sys.platform", "linux")
    with pytest.raises(ArtifactError, match=r"only Core ML on macOS.*\.mlpackage files"):
        artifact.component("unet")
    monkeypatch.setattr("sys.platform", "darwin")
    assert artifact.component("unet").files["coreml"].name == "Unet.mlmodelc"
    assert artifact.tokenizer("tokenizer").model_max_length == 32
    # Stable Diffusion 2 and XL's second encoder fill prompts up with "!".
    np.testing.assert_array_equal(
        artifact.tokenizer("tokenizer")("a !").input_ids[0, :6], [3, 2, 0, 4, 0, 0]
    )


def test_the_scale_of_latents_that_only_the_encoder_tells(tmp_path: Path) -> None:
    assert open_model(compiled(tmp_path, encoder=True)).spec.default_size == (384, 256)


def test_xl_is_told_by_its_inputs(tmp_path: Path) -> None:
    artifact = open_model(compiled(tmp_path, xl=True))
    spec = artifact.spec
    assert spec.class_name == "StableDiffusionXLPipeline"
    assert spec.latents is not None and spec.latents.scaling_factor == 0.13025
    assert spec.denoiser.signature.inputs[4].shape == ("batch", 6)
    rows = [artifact.tokenizer(name)("a").input_ids[0, :4] for name in spec.tokenizers]
    np.testing.assert_array_equal(rows, [[3, 2, 4, 4], [3, 2, 4, 0]])


def test_a_package_of_several_sizes(foreign: Path) -> None:
    from perfuse_exporters.coreml.mlpackage import _messages

    file = package(foreign, "unet") / PROGRAM
    model = _messages().Model.FromString(file.read_bytes())
    (sample,) = [one for one in model.description.input if one.name == "sample"]
    for height, width in ((8, 8), (8, 12)):
        shape = sample.type.multiArrayType.enumeratedShapes.shapes.add()
        shape.shape.extend([2, 4, height, width])
    file.write_bytes(model.SerializeToString())
    unet = open_model(foreign).component("unet")
    assert unet.sizes == ({"latent_width": 8}, {"latent_width": 12})
    assert unet.static == {"batch": 2, "latent_height": 8, "sequence": 77}
    with pytest.raises(InputError, match="latent_width 8; latent_width 12"):
        unet.check_dims({"latent_width": 16})


def test_a_repository_with_several_pipelines(foreign: Path, tmp_path: Path) -> None:
    hub = tmp_path / "hub"
    shutil.copytree(foreign, hub / "original" / "packages")
    compiled(hub / "original" / "compiled")
    assert open_model(hub).manifest.components["unet"].file.startswith("original/packages/")
    shutil.copytree(foreign, hub / "split_einsum" / "packages")
    with pytest.raises(InputError, match=r"several pipelines.*original/packages.*split_einsum/pa"):
        open_model(hub)
    assert open_model(hub / "split_einsum").spec.tokenizers
    shutil.copytree(package(foreign, "unet"), foreign / "Other_unet.mlpackage")
    with pytest.raises(InputError, match=r"it holds Other_unet.mlpackage, Stable_Diffusion"):
        open_model(foreign)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def swap(path: Path) -> None:
    """Name another item as the program."""
    manifest = json.loads(path.read_text())
    manifest["rootModelIdentifier"] = next(
        key for key, item in manifest["itemInfoEntries"].items() if "weights" in item["path"]
    )
    path.write_text(json.dumps(manifest))


def climb(path: Path) -> None:
    path.write_text(path.read_text().replace("com.apple.CoreML/weights", "../../../weights"))


DAMAGES: dict[str, tuple[Callable[[Path], None], str]] = {
    "no weights": (
        lambda p: (p / "Data/com.apple.CoreML/weights/weight.bin").unlink(),
        r"weights/weight.bin, which holds weights, is missing",
    ),
    "half of the weights": (
        lambda p: cut(p / "Data/com.apple.CoreML/weights/weight.bin"),
        r"weights/weight.bin is incomplete: it ends before a weight",
    ),
    "weights for a program": (
        lambda p: swap(p / "Manifest.json"),
        r"weights was to be read as a Core ML model; .*directory",
    ),
    "half a program": (
        lambda p: cut(p / "Data/com.apple.CoreML/model.mlmodel"),
        "was to be read as a Core ML model",
    ),
    "half a manifest": (
        lambda p: cut(p / "Manifest.json"),
        "read as the manifest of an .mlpackage",
    ),
    "no manifest": (lambda p: (p / "Manifest.json").unlink(), "FileNotFoundError"),
    "a path that climbs": (lambda p: climb(p / "Manifest.json"), "which is outside "),
    "a link that leads out": (
        lambda p: (shutil.rmtree(p / "Data"), (p / "Data").symlink_to("/usr")),
        "which is outside ",
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_package_is_told_before_any_engine(damage: str, foreign: Path) -> None:
    how, message = DAMAGES[damage]
    how(package(foreign, "unet"))
    with pytest.raises(ArtifactError, match=message):
        open_model(foreign)


def test_models_that_are_missing_or_of_something_else(foreign: Path, tmp_path: Path) -> None:
    shutil.rmtree(package(foreign, "vae_encoder"))
    assert "vae_encoder" not in open_model(foreign).spec.components
    shutil.move(package(foreign, "vae_decoder"), package(foreign, "vae_encoder"))
    with (
        pytest.warns(UserWarning, match="takes z; it is left out"),
        pytest.raises(ArtifactError, match="it has no vae_decoder"),
    ):
        open_model(foreign)
    shutil.rmtree(package(foreign, "unet"))
    shutil.move(package(foreign, "vae_encoder"), package(foreign, "unet"))
    with pytest.raises(ArtifactError, match="its input sample has the shape"):
        open_model(foreign)


@pytest.fixture(params=[("time_ids", [10], "as the refiner"), ("residual", [2], "ControlNet")])
def changed(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[Path, str]]:
    name, shape, message = request.param
    folder = compiled(tmp_path, xl=True)
    metadata = folder / "Unet.mlmodelc" / "metadata.json"
    data = json.loads(metadata.read_text())
    inputs = [one for one in data[0]["inputSchema"] if one["name"] != name]
    inputs.append({"name": name, "shape": json.dumps(shape), "dataType": "Float16"})
    metadata.write_text(json.dumps([{**data[0], "inputSchema": inputs}]))
    yield folder, message


def test_a_denoiser_that_cannot_be_fed(changed: tuple[Path, str]) -> None:
    folder, message = changed
    with pytest.raises((InputError, ArtifactError), match=message):
        open_model(folder)


def test_metadata_is_never_evaluated(tmp_path: Path) -> None:
    folder = compiled(tmp_path)
    metadata = folder / "Unet.mlmodelc" / "metadata.json"
    trap = "__import__('pathlib').Path('trap').touch()"
    metadata.write_text(metadata.read_text().replace("[2, 4, 96, 64]", trap))
    with pytest.raises(ArtifactError, match="read as a compiled Core ML model's"):
        open_model(folder)
    assert not Path("trap").exists()
