"""Folders that other tools wrote, read by a plugin; where a scheduler is taken from."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner
from tests.distributions import Install

from perfuse import DiffusionPipeline
from perfuse.cli import main
from perfuse.errors import CheckpointError, InputError, PluginError
from perfuse.plugins import host
from perfuse.sources.artifact import Artifact
from perfuse.sources.checkpoint import Checkpoint
from perfuse.sources.opening import open_model
from perfuse.sources.readers import read_folder, scheduler_config

pytest.importorskip("torch")

Make = Callable[[str], Path]
Export = Callable[[str, str], Path]

#: Reads a folder with ``net.acme`` beside a ``perfuse.json`` of another name.
PLUGIN = """
import dataclasses
from perfuse import Artifact, Reader, ReaderManifest, hookimpl
from perfuse.sources.manifest import Manifest

@hookimpl
def perfuse_readers():
    return [
        ReaderManifest(name="acme", impl="plugin_acme:Acme", patterns=("*.acme", "sub/*.acme")),
        ReaderManifest(name="far", impl="no_such:Reader", patterns=("far",),
                       requires=("no_such_module",), install="pip install acme[far]"),
        ReaderManifest(name="wrong", impl="plugin_acme:Other", patterns=("wrong",)),
    ]

class Acme(Reader):
    def read(self, folder, *, scheduler):
        (folder / "perfuse.json").write_bytes((folder / "described").read_bytes())
        manifest = Manifest.read(folder)
        (folder / "perfuse.json").unlink()
        spec = dataclasses.replace(manifest.spec, scheduler=scheduler or {})
        return Artifact(path=folder, manifest=dataclasses.replace(manifest, spec=spec))

class Other:
    pass
"""
CONFIG = {
    "_class_name": "EulerDiscreteScheduler",
    "beta_schedule": "linear",
    "beta_start": 0.001,
    "num_train_timesteps": 500,
}


@pytest.fixture
def foreign(exported: Export, tmp_path: Path) -> Path:
    """An export whose manifest only the plugin finds."""
    import shutil

    folder = Path(shutil.copytree(exported("tiny", "onnx"), tmp_path / "foreign"))
    (folder / "perfuse.json").rename(folder / "described")
    (folder / "net.acme").touch()
    return folder


@pytest.mark.export
def test_a_plugin_reads_what_it_knows(
    install: Install, foreign: Path, checkpoint: Make, tmp_path: Path
) -> None:
    install("acme", PLUGIN)
    assert host().readers()["acme"].patterns == ("*.acme", "sub/*.acme")
    artifact = open_model(foreign)
    assert isinstance(artifact, Artifact)
    assert artifact.format == "onnx"
    (foreign / "net.acme").unlink()
    assert read_folder(foreign) is None
    (foreign / "sub").mkdir()
    (foreign / "sub" / "a.acme").touch()
    assert read_folder(foreign) is not None
    (foreign / "model_index.json").write_text("{}")
    assert read_folder(foreign) is None  # a checkpoint is a checkpoint
    assert read_folder(tmp_path / "nowhere") is None


@pytest.mark.export
def test_it_runs_with_a_scheduler_from_elsewhere(
    install: Install, foreign: Path, checkpoint: Make, exported: Export
) -> None:
    install("acme", PLUGIN)
    with pytest.raises(InputError, match="has no scheduler config.*--scheduler-from CHECKPOINT"):
        DiffusionPipeline.from_pretrained(foreign)
    pipe = DiffusionPipeline.from_pretrained(foreign, scheduler_from=checkpoint("tiny"))
    usual = DiffusionPipeline.from_pretrained(exported("tiny", "onnx"))
    pictures = [p(num_inference_steps=2, seed=0, output_type="np").images for p in (pipe, usual)]
    assert (pictures[0] == pictures[1]).all()


def test_a_reader_that_cannot_be_used(install: Install, tmp_path: Path) -> None:
    install("acme", PLUGIN)
    (tmp_path / "far").touch()
    with pytest.raises(InputError, match=r"layout 'far'.*no_such_module.*pip install acme\[far\]"):
        open_model(tmp_path)
    (tmp_path / "far").rename(tmp_path / "wrong")
    with pytest.raises(PluginError, match="which is not a Reader"):
        open_model(tmp_path)


def test_a_hook_that_returns_something_else(install: Install, tmp_path: Path) -> None:
    install("acme", PLUGIN.replace('patterns=("far",)', 'patterns="far"'))
    host().ask_all()
    row = next(row for row in host().rows if row.name == "acme")
    assert (row.state, "patterns is 'far', not a tuple of texts" in row.reason) == ("broken", True)
    assert open_model(None)  # nobody else is harmed


# Schedulers


@pytest.mark.export
def test_where_a_scheduler_may_be_taken_from(
    checkpoint: Make, exported: Export, tmp_path: Path
) -> None:
    tiny = dict(Checkpoint.open(checkpoint("tiny")).spec.scheduler)
    assert scheduler_config(checkpoint("tiny")) == tiny
    assert scheduler_config(exported("tiny", "onnx"))["_class_name"] == tiny["_class_name"]
    (tmp_path / "scheduler").mkdir()
    file = tmp_path / "scheduler" / "scheduler_config.json"
    file.write_text(json.dumps(CONFIG))
    assert [scheduler_config(one) for one in (file, file.parent, tmp_path, CONFIG)] == [CONFIG] * 4


def test_where_no_scheduler_is(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="has neither model_index.json nor scheduler_config.json"):
        scheduler_config(tmp_path)
    with pytest.raises(InputError, match="there is no such folder or file"):
        scheduler_config(str(tmp_path / "a" / "b"))
    file = tmp_path / "scheduler_config.json"
    file.write_text('{"beta_start": 1}')
    with pytest.raises(CheckpointError, match="it has no _class_name"):
        scheduler_config(file)
    with pytest.raises(CheckpointError, match=r"taken from acme/none.*the Hub gave no scheduler/"):
        scheduler_config("acme/none", offline=True)


@pytest.mark.export
def test_any_model_takes_another_scheduler(
    checkpoint: Make, exported: Export, tmp_path: Path
) -> None:
    for model in (checkpoint("tiny"), exported("tiny", "onnx")):
        spec = open_model(model, scheduler_from=CONFIG).spec
        assert dict(spec.scheduler) == CONFIG
    pipe = DiffusionPipeline.from_pretrained(checkpoint("tiny"), scheduler_from=CONFIG)
    assert pipe.scheduler.config["num_train_timesteps"] == 500
    # as the pipeline's class corrects its own
    config = {"_class_name": "DDIMScheduler", "clip_sample": True, "steps_offset": 0}
    spec = open_model(checkpoint("sd1"), scheduler_from=config).spec
    assert (spec.scheduler["clip_sample"], spec.scheduler["steps_offset"]) == (False, 1)


def test_a_scheduler_that_cannot_be_used(checkpoint: Make) -> None:
    with pytest.raises(CheckpointError, match="KarrasVe"):
        open_model(checkpoint("tiny"), scheduler_from={"_class_name": "KarrasVe"})
    wrong = {**CONFIG, "beta_schedule": "cubic"}
    with pytest.raises(CheckpointError, match="EulerDiscreteScheduler was to be used with.*cubic"):
        open_model(checkpoint("tiny"), scheduler_from=wrong)


def test_the_command_line_and_the_environment(
    checkpoint: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "scheduler_config.json"
    file.write_text(json.dumps(CONFIG))
    command = ["inspect", "--model", str(checkpoint("tiny"))]
    shown = CliRunner().invoke(main, [*command, "--scheduler-from", str(file)])
    assert "EulerDiscreteScheduler" in shown.output
    monkeypatch.setenv("PERFUSE_SCHEDULER_FROM", str(file))
    assert "EulerDiscreteScheduler" in CliRunner().invoke(main, command).output
