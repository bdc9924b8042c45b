"""Loading compiled programs, by a stand-in for the SDK: nothing here was executed on Neuron."""

import importlib
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from tests import neuron_stand_in

from perfuse import DiffusionPipeline
from perfuse.backend import Request, SupportLevel, Target
from perfuse.errors import (
    ArtifactError,
    BackendError,
    DeviceNotFoundError,
    EngineMissingError,
    ExecutionError,
    InputError,
)
from perfuse.sources.artifact import Artifact
from perfuse.sources.checkpoint import Checkpoint
from perfuse.sources.manifest import sha256
from perfuse.sources.readers import read_folder
from perfuse.sources.store import ArtifactStore
from perfuse_exporters.neuron import sdk as neuron_sdk
from perfuse_neuron import runtime
from perfuse_neuron.backend import Neuron

pytestmark = pytest.mark.export

Make = Callable[[str], Path]
PROMPT = {"prompt": "a red circle", "num_inference_steps": 2, "seed": 0, "output_type": "np"}


@pytest.fixture(scope="module")
def exported_neuron(checkpoint: Make, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Stable Diffusion, compiled by the stand-in for a batch of one and for a guided one."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        folder = tmp_path_factory.mktemp("neuron")
        neuron_stand_in.install(monkeypatch, folder)
        monkeypatch.setenv("PERFUSE_CACHE", str(folder / "cache"))
        pipe = DiffusionPipeline.from_pretrained(checkpoint("words"), backend="torch:cpu")
        apart = {"inline_weights_to_neff": "false"}
        return {
            "one": pipe.export(folder / "one", to="neuron", batch=1, options=apart),
            "two": pipe.export(folder / "two", to="neuron"),
        }


@pytest.fixture
def sdk(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Any]:
    neuron_stand_in.install(monkeypatch, tmp_path)
    monkeypatch.setenv("PERFUSE_CACHE", str(tmp_path / "cache"))
    yield importlib.import_module("torch_neuronx")


@pytest.fixture
def folder(exported_neuron: dict[str, Path], tmp_path: Path) -> Path:
    """A copy of the export for a batch of one, to be damaged."""
    return Path(shutil.copytree(exported_neuron["one"], tmp_path / "copy"))


def _draw(model: Path, backend: str = "neuron", **settings: Any) -> Any:
    pipe = DiffusionPipeline.from_pretrained(model, backend=backend, **settings)
    return pipe(**PROMPT).images


@pytest.fixture
def expected(checkpoint: Make) -> Any:
    return _draw(checkpoint("words"), "torch:cpu")


def test_an_export_draws_what_the_checkpoint_draws(
    sdk: Any, exported_neuron: dict[str, Path], expected: Any
) -> None:
    pipe = DiffusionPipeline.from_pretrained(exported_neuron["two"])
    assert str(pipe.placement) == "neuron"
    np.testing.assert_allclose(pipe(**PROMPT).images, expected, atol=2e-5)
    report = pipe.program("unet").report()
    assert (report.device, report.precision, report.fallbacks) == ("neuron:0", "float32", ())
    assert report.engine == "torch-neuronx 0.0+stand.in"
    assert set(sdk.LOADED_ON) == {(0,)}


def test_guidance_is_split_over_two_cores(
    sdk: Any, exported_neuron: dict[str, Path], expected: Any
) -> None:
    options = {"guidance": "split"}
    pipe = DiffusionPipeline.from_pretrained(exported_neuron["one"], options=options)
    np.testing.assert_allclose(pipe(**PROMPT).images, expected, atol=2e-5)
    assert sdk.LOADED_ON.count((0, 1)) == 1  # the denoiser alone
    assert sdk.SHARED == [2, 2, 2]  # once to warm up, then a step each
    assert pipe.program("unet").report().device == "neuron:0,1"


def test_other_batches_are_split_and_padded(
    sdk: Any, exported_neuron: dict[str, Path], checkpoint: Make
) -> None:
    settings = {**PROMPT, "num_images_per_prompt": 3, "num_inference_steps": 1}
    wanted = DiffusionPipeline.from_pretrained(checkpoint("words"), backend="torch:cpu")
    for name in ("one", "two"):
        pipe = DiffusionPipeline.from_pretrained(exported_neuron[name])
        found = pipe(**settings).images
        np.testing.assert_allclose(found, wanted(**settings).images, atol=2e-5)
    unguided = {**settings, "guidance_scale": 1.0}
    found = pipe(**unguided).images
    np.testing.assert_allclose(found, wanted(**unguided).images, atol=2e-5)


def test_another_size_says_for_which_it_was_made(
    sdk: Any, exported_neuron: dict[str, Path]
) -> None:
    pipe = DiffusionPipeline.from_pretrained(exported_neuron["one"])
    with pytest.raises(InputError, match=r"exported for .*latent_height 8.*; got latent_height 16"):
        pipe(**PROMPT, height=32, width=16)


def test_a_checkpoint_is_compiled_on_the_way(sdk: Any, checkpoint: Make) -> None:
    options = {"optlevel": "1", "guidance": "split"}
    settings = {"num_inference_steps": 1, "seed": 0, "output_type": "np"}
    found, wanted = (
        DiffusionPipeline.from_pretrained(checkpoint("tiny"), **kind)(**settings).images
        for kind in ({"backend": "neuron:1", "options": options}, {"backend": "torch:cpu"})
    )
    np.testing.assert_allclose(found, wanted, atol=2e-5)
    assert sdk.COMPILED[-1]["arguments"][2:4] == ["--optlevel", "1"]
    assert sdk.LOADED_ON[-1] == (1,)


def test_guidance_is_split_for_a_checkpoint(sdk: Any, checkpoint: Make) -> None:
    component = Checkpoint.open(checkpoint("words")).component(
        "unet", static={"batch": 2, "latent_height": 8, "latent_width": 8, "sequence": 77}
    )
    target = Target(backend="neuron", options={"guidance": "split"})
    program = Neuron().prepare(component, target, ArtifactStore.default())
    assert program.signature.inputs[0].shape == (2, 4, 8, 8)
    assert sdk.COMPILED[-1]["shapes"][0] == (1, 4, 8, 8)


def test_a_second_core_is_needed_to_split(
    exported_neuron: dict[str, Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    neuron_stand_in.install(monkeypatch, tmp_path, cores=1)
    with pytest.raises(DeviceNotFoundError, match="NeuronCore 1 was asked for.*may use 0"):
        _draw(exported_neuron["one"], options={"guidance": "split"})


# Trust


def _no_loading(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(path: Path, on: Any) -> Any:
        raise AssertionError(f"{path} was loaded")

    monkeypatch.setattr(runtime, "load", fails)


def test_an_altered_file_is_not_loaded(
    sdk: Any, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _no_loading(monkeypatch)
    file = folder / "text_encoder" / "model.neuron"
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    with pytest.raises(ArtifactError, match="can run code, and its SHA-256 is not the one in"):
        _draw(folder)


def test_a_file_that_nobody_vouches_for_is_not_loaded(
    sdk: Any, folder: Path, expected: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As optimum-neuron's folders are: read, and refused until the user names the files."""
    (folder / "perfuse.json").unlink()
    sums = [sha256(file) for file in sorted(folder.glob("*/model.neuron"))]
    with monkeypatch.context() as context:
        _no_loading(context)
        for trust in ({}, {"trust": "0" * 64}):
            with pytest.raises(ArtifactError, match=r"has no perfuse.json .* --option trust="):
                _draw(folder, options=trust)
    with pytest.raises(InputError, match="64 hexadecimal digits"):
        _draw(folder, options={"trust": "yes"})
    found = _draw(folder, options={"trust": ",".join(sums)})
    np.testing.assert_allclose(found, expected, atol=2e-5)


def test_a_manifest_that_leaves_a_file_out_vouches_for_nothing(sdk: Any, folder: Path) -> None:
    manifest = json.loads((folder / "perfuse.json").read_text("utf-8"))
    del manifest["files"]["unet/model.neuron"]
    (folder / "perfuse.json").write_text(json.dumps(manifest), "utf-8")
    with pytest.raises(ArtifactError, match="not among its files"):
        _draw(folder)
    with pytest.raises(ArtifactError, match="not among its files"):
        Artifact.open(folder)


# Folders of optimum-neuron


def _config(folder: Path, name: str, **neuron: Any) -> None:
    file = folder / name / "config.json"
    config = json.loads(file.read_text("utf-8"))
    config["neuron"] = {**config["neuron"], **neuron}
    file.write_text(json.dumps(config), "utf-8")


def test_what_optimum_neuron_wrote_is_read_as_an_export(folder: Path) -> None:
    manifest = Artifact.open(folder).manifest
    (folder / "perfuse.json").unlink()
    _config(folder, "text_encoder", output_hidden_states=False)
    _config(folder, "unet", auto_cast="matmult", auto_cast_type="bf16")
    read = read_folder(folder)
    assert read is not None
    assert read.format == "neuron"
    assert read.spec.class_name == manifest.spec.class_name
    assert read.spec.latents == manifest.spec.latents
    assert read.spec.tokenizers == manifest.spec.tokenizers
    assert read.spec.scheduler["_class_name"] == manifest.spec.scheduler["_class_name"]
    for name, component in manifest.components.items():
        assert read.manifest.components[name].static == component.static
    assert read.manifest.components["unet"].precision == "bfloat16"
    outputs = read.spec.components["text_encoder"].signature.output_names
    assert outputs == ("last_hidden_state", "pooler_output")


@pytest.mark.parametrize(
    ("damage", "error", "says"),
    [
        (
            lambda f: shutil.rmtree(f / "vae_decoder"),
            ArtifactError,
            "no model.neuron for vae_decoder",
        ),
        (lambda f: _config(f, "unet", tensor_parallel_size=2), InputError, "for 2 cores at once"),
        (
            lambda f: _config(f, "unet", static_height=None),
            ArtifactError,
            "for which latent_height",
        ),
        (lambda f: (f / "unet/config.json").write_text("{}"), ArtifactError, 'has no "neuron"'),
        (lambda f: (f / "unet/config.json").write_text("{"), ArtifactError, "is not JSON"),
        (
            lambda f: shutil.copyfile(f / "vae_decoder/config.json", f / "unet/config.json"),
            ArtifactError,
            "unet/config.json was read as the config of a AutoencoderKL",
        ),
        (
            lambda f: (f / "model_index.json").write_text('{"_class_name": "NeuronMochiPipeline"}'),
            InputError,
            "it is a MochiPipeline",
        ),
    ],
)
def test_a_folder_that_cannot_be_read_says_why(
    folder: Path, damage: Callable[[Path], Any], error: type[Exception], says: str
) -> None:
    (folder / "perfuse.json").unlink()
    damage(folder)
    with pytest.raises(error, match=says):
        read_folder(folder)


def test_a_checkpoint_is_no_folder_of_optimum_neuron(checkpoint: Make) -> None:
    assert read_folder(checkpoint("words")) is None


# Weights


@pytest.fixture(scope="module")
def other(checkpoint: Make, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same architecture with other weights."""
    from perfuse.models import UNet2DConditionModel
    from perfuse_conformance.checkpoints import randomise

    folder = Path(shutil.copytree(checkpoint("words"), tmp_path_factory.mktemp("w") / "other"))
    unet = UNet2DConditionModel.from_pretrained(folder / "unet")
    randomise(unet, seed=5).save_pretrained(folder / "unet")
    return folder


def test_weights_are_replaced_without_compiling(
    sdk: Any, exported_neuron: dict[str, Path], other: Path, expected: Any
) -> None:
    before = len(sdk.COMPILED)
    found = _draw(exported_neuron["one"], options={"weights": str(other)})
    np.testing.assert_allclose(found, _draw(other, "torch:cpu"), atol=2e-5)
    assert np.abs(found - expected).max() > 1e-2
    assert len(sdk.COMPILED) == before
    assert sdk.MOVED == [0, 0] * 3  # each component's onto its core, and again when replaced


@pytest.mark.parametrize(
    ("name", "options", "says"),
    [
        ("two", {}, "its own are part of the program"),
        ("one", {"guidance": "split"}, "it runs on 2 cores at once"),
    ],
)
def test_weights_that_cannot_be_replaced(
    sdk: Any,
    exported_neuron: dict[str, Path],
    other: Path,
    name: str,
    options: dict[str, str],
    says: str,
) -> None:
    with pytest.raises(InputError, match=says):
        _draw(exported_neuron[name], options={"weights": str(other), **options})


def test_weights_of_another_architecture_are_refused(
    sdk: Any, exported_neuron: dict[str, Path], checkpoint: Make
) -> None:
    with pytest.raises(InputError, match="another unet. Name a checkpoint of the same"):
        pipe = DiffusionPipeline.from_pretrained(
            exported_neuron["one"], options={"weights": str(checkpoint("sd1"))}
        )
        pipe.program("unet")


# What is there, and what is not


def test_the_devices_are_the_cores(sdk: Any) -> None:
    assert [device.name for device in Neuron().devices()] == ["0", "1"]
    assert Neuron().devices()[0].precisions == ("float32", "float16", "bfloat16")


def test_without_a_core_nothing_runs(
    sdk: Any, exported_neuron: dict[str, Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(neuron_sdk, "DEVICES", tmp_path / "none")
    assert list(Neuron().devices()) == []
    with pytest.raises(DeviceNotFoundError, match="the driver shows none"):
        _draw(exported_neuron["one"])


def test_half_an_sdk_is_named(sdk: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "libneuronxla" else whole(name)
    )
    with pytest.raises(EngineMissingError, match="libneuronxla"):
        Neuron().devices()


def test_without_the_sdk_the_backend_is_a_row(checkpoint: Make) -> None:
    assert importlib.util.find_spec("torch_neuronx") is None
    with pytest.raises(BackendError, match="torch_neuronx"):
        DiffusionPipeline.from_pretrained(checkpoint("words"), backend="neuron")


def test_one_size_is_what_it_supports(checkpoint: Make) -> None:
    spec = Checkpoint.open(checkpoint("words")).component("unet").spec
    static = {"batch": 2, "latent_height": 8, "latent_width": 8, "sequence": 77}
    levels = [
        Neuron().supports(Request(component=spec, precision=precision, static=fixed)).level
        for precision, fixed in (("float32", static), ("float32", {}), ("int8", static))
    ]
    assert levels == [SupportLevel.FULL, SupportLevel.UNSUPPORTED, SupportLevel.UNSUPPORTED]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"guidance": "twice"}, "guidance=twice; it takes batch, split"),
        ({"optlevel": "1"}, "exported already"),
        ({"speed": "1"}, "the option speed; it has guidance, trust, weights"),
    ],
)
def test_an_option_that_it_has_not(
    sdk: Any, exported_neuron: dict[str, Path], options: dict[str, str], says: str
) -> None:
    with pytest.raises(InputError, match=says):
        _draw(exported_neuron["one"], options=options)


def test_what_fails_on_the_device_is_told(
    sdk: Any, exported_neuron: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(path: Path, on: Any) -> Any:
        def call(*inputs: Any) -> Any:
            raise RuntimeError("nrt_load failed\nNRT_RESOURCE: out of memory")

        return call

    monkeypatch.setattr(runtime, "load", broken)
    with pytest.raises(ExecutionError, match="text_encoder on neuron:0 failed.*NRT_RESOURCE"):
        _draw(exported_neuron["one"])


def test_a_file_of_another_component_is_refused(sdk: Any, folder: Path) -> None:
    (folder / "perfuse.json").unlink()
    shutil.copyfile(folder / "vae_decoder/model.neuron", folder / "text_encoder/model.neuron")
    sums = ",".join(sha256(file) for file in folder.glob("*/model.neuron"))
    with pytest.raises(ExecutionError, match="text_encoder on neuron:0 failed"):
        _draw(folder, options={"trust": sums})


def test_a_closed_program_says_so(sdk: Any, exported_neuron: dict[str, Path]) -> None:
    pipe = DiffusionPipeline.from_pretrained(exported_neuron["one"])
    program = pipe.program("vae_decoder")
    program.close()
    with pytest.raises(ExecutionError, match="was closed"):
        program(latent_sample=np.zeros((1, 4, 8, 8), np.float32))
