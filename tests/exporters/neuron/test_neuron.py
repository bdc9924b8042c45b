"""What is given to Neuron's compiler, and what is written. The compiler is a stand-in (`tests/neuron_stand_in`)."""

import importlib
import json
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from tests import neuron_stand_in

from perfuse import DiffusionPipeline
from perfuse.backend import Component, read_options
from perfuse.errors import ConfigError, ExportError, InputError
from perfuse.sources.checkpoint import Checkpoint
from perfuse.sources.manifest import Manifest
from perfuse_exporters.neuron import sdk as neuron_sdk
from perfuse_exporters.neuron.exporter import NeuronExporter

Make = Callable[[str], Path]
SIZE = {"batch": 1, "height": 8, "width": 8}


@pytest.fixture
def sdk(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Any]:
    """The stand-in, and a cache of the test's own."""
    neuron_stand_in.install(monkeypatch, tmp_path)
    monkeypatch.setenv("PERFUSE_CACHE", str(tmp_path / "cache"))
    yield importlib.import_module("torch_neuronx")


@pytest.fixture
def unet(checkpoint: Make) -> Component:
    """One small denoiser at one size."""
    return Checkpoint.open(checkpoint("tiny")).component("unet", static=SIZE)


def _export(component: Component, folder: Path, **options: str) -> Path:
    folder.mkdir(parents=True)
    return NeuronExporter().export(replace(component, options=options), folder)


def _with_other_weights(component: Component) -> Component:
    """The same graph around other numbers."""
    assert component.build is not None
    module = component.build()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.mul_(1.25)
    return replace(component, build=lambda: module)


def _computes(path: Path, component: Component) -> bool:
    assert component.build is not None
    x, t = torch.randn(1, 3, 8, 8), torch.tensor([961.733])
    expected = component.build()(x, t)[0]
    (found,) = torch.jit.load(str(path))(x, t)
    return torch.allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize(
    ("precision", "options", "arguments"),
    [
        ("float32", {}, "--auto-cast none --optlevel 2"),
        ("bfloat16", {}, "--auto-cast matmult --auto-cast-type bf16 --optlevel 2"),
        (
            "float16",
            {"auto_cast": "all", "optlevel": "1", "instance_type": "trn2"},
            "--auto-cast all --auto-cast-type fp16 --optlevel 1 --target trn2",
        ),
    ],
)
def test_the_compiler_is_given_what_was_asked_for(
    sdk: Any,
    unet: Component,
    tmp_path: Path,
    precision: str,
    options: dict[str, str],
    arguments: str,
) -> None:
    path = _export(replace(unet, precision=precision), tmp_path / "unet", **options)
    asked = sdk.COMPILED[-1]
    assert asked["arguments"] == [*arguments.split(), "--model-type", "unet-inference"]
    assert asked["shapes"] == [(1, 3, 8, 8), (1,)]
    assert asked["dtypes"] == [torch.float32, torch.float32]
    assert asked["inline"] and not asked["cpu_backend"]
    neuron = json.loads(path.with_name("config.json").read_text("utf-8"))["neuron"]
    auto_cast = arguments.split()[1]
    assert neuron["auto_cast"] == (None if auto_cast == "none" else auto_cast)
    assert neuron["instance_type"] == options.get("instance_type")
    assert (neuron["static_batch_size"], neuron["static_height"]) == (1, 8)
    assert _computes(path, unet)


def test_a_compiled_graph_is_kept_under_its_graph_its_options_and_its_weights(
    sdk: Any, unet: Component, tmp_path: Path
) -> None:
    before = len(sdk.COMPILED)
    _export(unet, tmp_path / "a")
    again = _export(unet, tmp_path / "b")
    assert len(sdk.COMPILED) == before + 1
    assert _computes(again, unet)
    other = _with_other_weights(unet)
    assert _computes(_export(other, tmp_path / "c"), other)
    _export(unet, tmp_path / "d", optlevel="3")
    _export(replace(unet, static={**SIZE, "height": 16}), tmp_path / "e")
    assert len(sdk.COMPILED) == before + 4


def test_other_weights_need_no_compiler_where_they_are_apart(
    sdk: Any, unet: Component, tmp_path: Path
) -> None:
    before, apart = len(sdk.COMPILED), {"inline_weights_to_neff": "false"}
    _export(unet, tmp_path / "a", **apart)
    other = _with_other_weights(unet)
    path = _export(other, tmp_path / "b", **apart)
    assert len(sdk.COMPILED) == before + 1
    assert not sdk.COMPILED[-1]["inline"]
    assert _computes(path, other)
    assert not _computes(path, unet)


def test_the_users_module_stays_as_it_was(sdk: Any, unet: Component, tmp_path: Path) -> None:
    other = _with_other_weights(unet)
    assert other.build is not None
    module = other.build()
    places = [parameter.data_ptr() for parameter in module.parameters()]
    _export(other, tmp_path / "a")
    assert [parameter.data_ptr() for parameter in module.parameters()] == places


def test_what_the_compiler_says_when_it_fails_is_shown_and_kept(
    sdk: Any,
    unet: Component,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("STAND_IN_FAILS", "1")
    with pytest.raises(ExportError) as caught:
        _export(unet, tmp_path / "a")
    text = str(caught.value)
    assert "neuronx-cc failed with 70" in text
    assert "NCC_EVRF001: An unsupported operator was used." in text
    assert "INFO: pass 9" in text and "INFO: pass 1\n" not in text
    (log,) = (tmp_path / "cache" / "artifacts" / "neuronx-cc-logs").iterdir()
    assert str(log) in text
    assert "INFO: pass 1\n" in log.read_text("utf-8")
    assert "pass" not in "".join(capfd.readouterr())
    monkeypatch.delenv("STAND_IN_FAILS")
    _export(unet, tmp_path / "b")  # nothing of the failure was kept
    assert "Compiler status PASS" in log.read_text("utf-8")
    assert "PASS" not in "".join(capfd.readouterr())


def _no_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")


def _no_bridge(monkeypatch: pytest.MonkeyPatch) -> None:
    _hide(monkeypatch, "libneuronxla")


def _placeholder(monkeypatch: pytest.MonkeyPatch) -> None:
    """What PyPI has under this name."""

    def fails(name: str) -> Any:
        raise ImportError("WRONG PACKAGE. Please install the package from Neuron Repository")

    monkeypatch.setattr(importlib, "import_module", fails)


def _hide(monkeypatch: pytest.MonkeyPatch, module: str) -> None:
    whole = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == module else whole(name)
    )


@pytest.mark.parametrize(
    ("breaks", "says"),
    [
        (_no_compiler, "neuronx-cc, the compiler that it calls, is not, or is not on PATH"),
        (_no_bridge, "libneuronxla, which it talks to the runtime through, is not"),
        (_placeholder, "cannot be imported: .*WRONG PACKAGE"),
    ],
)
def test_half_an_sdk_is_named(
    sdk: Any,
    unet: Component,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    breaks: Callable[[pytest.MonkeyPatch], None],
    says: str,
) -> None:
    breaks(monkeypatch)
    with pytest.raises(ExportError, match=says) as caught:
        _export(unet, tmp_path / "a")
    assert neuron_sdk.INSTALL in str(caught.value)


def test_without_a_device_the_instance_is_asked_for(
    sdk: Any, unet: Component, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(neuron_sdk, "DEVICES", tmp_path / "none")
    with pytest.raises(ExportError, match="--option instance_type=inf2"):
        _export(unet, tmp_path / "a")
    monkeypatch.setenv("NEURON_PLATFORM_TARGET_OVERRIDE", "")
    monkeypatch.delenv("NEURON_PLATFORM_TARGET_OVERRIDE")
    _export(unet, tmp_path / "b", instance_type="inf2")
    assert os.environ["NEURON_PLATFORM_TARGET_OVERRIDE"] == "inf2"
    assert sdk.COMPILED[-1]["cpu_backend"]
    assert sdk.COMPILED[-1]["arguments"][-4:-2] == ["--target", "inf2"]


@pytest.mark.parametrize(
    ("changes", "error", "says"),
    [
        ({"static": {"batch": 1}}, ExportError, "height, width open"),
        ({"sizes": ({"height": 8}, {"height": 16})}, ExportError, "for 2 sizes; a Neuron program"),
        ({"precision": "int8"}, ExportError, "choose one of float32, float16, bfloat16"),
    ],
)
def test_what_it_cannot_compile_is_refused_before_the_compiler_runs(
    sdk: Any,
    unet: Component,
    tmp_path: Path,
    changes: dict[str, Any],
    error: type[Exception],
    says: str,
) -> None:
    before = len(sdk.COMPILED)
    with pytest.raises(error, match=says):
        NeuronExporter().export(replace(unet, **changes), tmp_path)
    assert len(sdk.COMPILED) == before
    assert not list(tmp_path.glob("model.neuron"))


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"optlevel": "4"}, "optlevel=4; it takes 1, 2, 3"),
        ({"palettize": "6"}, "has auto_cast, auto_cast_type"),
    ],
)
def test_options_that_there_are_not(options: dict[str, str], says: str) -> None:
    with pytest.raises(InputError, match=says):
        read_options(options, NeuronExporter.options, of="neuron")


def test_the_cores_are_those_that_the_process_may_use(
    sdk: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert neuron_sdk.cores() == 2
    for variable, value, number in (
        ("NEURON_RT_VISIBLE_CORES", "1", 1),
        ("NEURON_RT_VISIBLE_CORES", "0-1", 2),
        ("NEURON_RT_NUM_CORES", "1", 1),
    ):
        with monkeypatch.context() as context:
            context.setenv(variable, value)
            assert neuron_sdk.cores() == number
    monkeypatch.setenv("NEURON_RT_VISIBLE_CORES", "all")
    with pytest.raises(ConfigError, match="NEURON_RT_VISIBLE_CORES is 'all'"):
        neuron_sdk.cores()


def test_a_pipeline_is_laid_out_as_optimum_neuron_lays_it_out(
    sdk: Any, checkpoint: Make, tmp_path: Path
) -> None:
    pipe = DiffusionPipeline.from_pretrained(
        checkpoint("words"), backend="torch:cpu", precision="bfloat16"
    )
    options = {"unet.auto_cast": "none"}
    folder = pipe.export(
        tmp_path / "out", to="neuron", height=16, width=16, batch=1, options=options
    )
    names = {"text_encoder", "unet", "vae_encoder", "vae_decoder"}
    assert {path.parent.name for path in folder.glob("*/model.neuron")} == names
    index = json.loads((folder / "model_index.json").read_text("utf-8"))
    assert index["_class_name"] == "StableDiffusionPipeline"
    assert (folder / "scheduler" / "scheduler_config.json").is_file()
    assert (folder / "tokenizer" / "vocab.json").is_file()

    configs = {n: json.loads((folder / n / "config.json").read_text("utf-8")) for n in names}
    neuron = {name: config["neuron"] for name, config in configs.items()}
    assert configs["unet"]["cross_attention_dim"] == 32
    assert configs["unet"]["model_type"] == "unet"
    assert neuron["unet"]["auto_cast"] is None
    assert neuron["vae_decoder"]["auto_cast"] == "matmult"
    assert _sizes(neuron["unet"]) == {
        "batch_size": 1,
        "sequence_length": 77,
        "num_channels": 4,
        "height": 8,
        "width": 8,
        "vae_scale_factor": 2,
    }
    assert _sizes(neuron["vae_encoder"]) == {
        "batch_size": 1,
        "num_channels": 3,
        "height": 16,
        "width": 16,
    }
    assert neuron["text_encoder"]["model_type"] == "clip-text-model"
    assert neuron["text_encoder"]["output_hidden_states"]
    assert {one["compiler_version"] for one in neuron.values()} == {"0.0+stand.in"}

    manifest = Manifest.read(folder)
    manifest.verify(folder)
    assert manifest.components["unet"].options == {"auto_cast": "none"}
    assert manifest.components["unet"].static["latent_height"] == 8
    kinds = {tuple(one["arguments"][-2:]) for one in sdk.COMPILED[-4:]}
    assert ("--model-type", "transformer") in kinds


def _sizes(neuron: Mapping[str, Any]) -> dict[str, int]:
    return {k.removeprefix("static_"): v for k, v in neuron.items() if k.startswith("static_")}
