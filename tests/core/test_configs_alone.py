"""Checkpoints whose weights are not there: what their configs say of them."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner

from perfuse import Checkpoint
from perfuse.cli import main
from perfuse.errors import WeightsError
from perfuse.known.make import differing
from perfuse.run.graph_sets import GraphSet
from perfuse.run.graphs import add_graph
from perfuse.sources.configs_alone import ConfigsAlone, with_or_without_weights
from perfuse_conformance.checkpoints import write_configs
from perfuse_exporters.onnx.exporter import OnnxExporter

pytest.importorskip("torch")

Make = Callable[[str], Path]

#: As their authors count them.
PUBLISHED = {
    "sana-1.6b": {"transformer": 1_604_462_752},
    "qwen-image": {"transformer": 20_430_401_088},
    "flux-dev": {"transformer": 11_901_408_320},
}


def without_weights(checkpoint: Path, folder: Path) -> Path:
    return Path(shutil.copytree(checkpoint, folder, ignore=shutil.ignore_patterns("*.safetensors")))


def inspect(*arguments: object) -> str:
    result = CliRunner().invoke(main, ["inspect", *map(str, arguments)])
    assert result.exit_code == 0, (result.stderr, result.exception)
    return result.stdout


@pytest.mark.parametrize("kind", ["sd1", "flux", "z-image"])
def test_configs_count_what_the_files_hold(checkpoint: Make, kind: str, tmp_path: Path) -> None:
    whole = Checkpoint.open(checkpoint(kind))
    source = with_or_without_weights(Checkpoint.open(without_weights(whole.path, tmp_path / kind)))
    assert isinstance(source, ConfigsAlone)
    found = source.parameters()
    assert found == {folder: whole.weights(folder).parameters for folder in found}
    assert with_or_without_weights(whole) is whole


@pytest.mark.parametrize("name", PUBLISHED)
def test_real_configs_have_as_many_parameters_as_published(name: str, tmp_path: Path) -> None:
    folder = write_configs(tmp_path, name)
    found = json.loads(inspect("--model", folder, "--json"))
    assert found["parameters"] | PUBLISHED[name] == found["parameters"]
    assert found["weight_bytes"] == {}


def test_what_would_fit_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PERFUSE_MEMORY_LIMIT", "25GB")
    said = inspect("--model", write_configs(tmp_path, "flux-dev"))
    assert "not there; counted from the configs" in said
    rows = {line.split("  ")[0]: line.split() for line in said.splitlines()}
    assert rows["transformer"][-8:] == ["47.61", "GB", "23.80", "GB", "11.90", "GB", "5.95", "GB"]
    assert rows["of 25.00 GB here"][4:] == ["no", "in", "turns", "fits", "fits"]
    planned = inspect("--model", tmp_path, "--memory", "low", "--precision", "int8")
    assert "weights of" in planned


def test_one_model_without_weights_is_a_damaged_checkpoint(
    checkpoint: Make, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(checkpoint("sd1"), tmp_path / "sd1"))
    (folder / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    source = with_or_without_weights(Checkpoint.open(folder))
    with pytest.raises(WeightsError, match="has no weights"):
        source.weight_bytes()


@pytest.mark.export
@pytest.mark.parametrize(
    ("kind", "component", "format", "engine"),
    [
        ("dit", "transformer", "onnx", "onnxscript"),
        ("klein", "vae_decoder", "openvino", "openvino"),  # whose first tensor is a counter
    ],
)
def test_graphs_of_configs_are_those_of_checkpoints(
    kind: str, component: str, format: str, engine: str, checkpoint: Make, tmp_path: Path
) -> None:
    pytest.importorskip(engine)
    whole = Checkpoint.open(checkpoint(kind))
    alone = with_or_without_weights(Checkpoint.open(without_weights(whole.path, tmp_path / kind)))
    made = [
        add_graph(source.component(component), format, GraphSet(folder=tmp_path / name), of="it")
        for name, source in {"whole": whole, "alone": alone}.items()
    ]
    assert made[0] is not None and made[1] is not None
    assert made[0].name == made[1].name
    assert differing(made[0], made[1]) == []


@pytest.mark.export
def test_the_counter_of_a_batch_norm_is_no_part_of_a_graph(
    checkpoint: Make, tmp_path: Path
) -> None:
    """Else the graph would be that of one checkpoint, and its weights would be read with torch."""
    pytest.importorskip("onnxscript")
    (tmp_path / "graph").mkdir()
    component = Checkpoint.open(checkpoint("klein")).component("vae_decoder")
    _, weights = OnnxExporter().export_graph(component, tmp_path / "graph")
    assert not weights.held
    assert {"bn.running_mean", "bn.running_var"} <= {c.tensor for c in weights.constants.values()}


def test_configs_alone_are_not_drawn_with(tmp_path: Path) -> None:
    model = write_configs(tmp_path, "dit-xl")
    given = ["generate", "--class", "1", "--model", str(model), "--backend", "torch:cpu"]
    result = CliRunner().invoke(main, given)
    assert result.exit_code == 1
    assert "has no weights" in result.stderr
