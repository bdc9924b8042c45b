"""The table of bridged pipelines is what its data gives, and its recipes draw."""

import json
import os
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")
pytest.importorskip("onnxruntime")
pytest.importorskip("openvino")

from perfuse import ArtifactStore
from perfuse_conformance.bridged.measure import Measured, Part, drawn, measure
from perfuse_conformance.bridged.page import main, merged, rendered
from perfuse_conformance.bridged.recipe import Recipe, recipes

ROOT = Path(__file__).parents[3]
DATA, PAGE = ROOT / "docs/bridged.json", ROOT / "docs/bridged.md"


def known(name: str) -> Recipe:
    return next(one for one in recipes() if one.name == name)


def test_the_page_is_what_the_data_gives(tmp_path: Path) -> None:
    check = ["--data", str(DATA), "--check", "--page"]
    assert CliRunner().invoke(main, [*check, str(PAGE)]).exit_code == 0
    other = tmp_path / "page.md"
    other.write_text(PAGE.read_text("utf-8").replace("100%", "99%", 1), "utf-8")
    found = CliRunner().invoke(main, [*check, str(other)])
    assert found.exit_code == 1 and "is not what" in found.output


def test_sixty_pipelines_agree() -> None:
    rows = json.loads(DATA.read_text("utf-8"))["rows"]
    names = {row["pipeline"] for row in rows}
    failed = {row["pipeline"] for row in rows if row["difference"] is None}
    assert len({name.partition(" (")[0] for name in names - failed}) >= 60
    recipe = {one.name: one for one in recipes()}
    assert names <= recipe.keys()
    assert all(hasattr(diffusers, one.pipeline) for one in recipe.values())


def test_a_row_says_what_ran_where() -> None:
    part = Part(
        name="unet",
        class_name="U",
        calls=3,
        torch_calls=0,
        graphs=1,
        seconds=3.0,
        torch_seconds=0.0,
    )
    left = Part(
        name="vae_decode",
        class_name="V",
        calls=0,
        torch_calls=1,
        graphs=0,
        seconds=0.0,
        torch_seconds=1.0,
        reasons=("no rule for a | b",),
    )
    row = Measured(
        pipeline="P",
        kind="text to image",
        target="openvino",
        compared="picture",
        difference=1 / 255,
        parts=(part, left),
    )
    worse = Measured(pipeline="P", kind="text to image", target="onnxruntime", failure="why")
    assert row.agrees and row.engine_share == 1.0 and not worse.agrees
    table = rendered(merged(merged({}, [worse]), [row]))
    assert "| P | text to image | ✗ why | ✓ 1/255, 100% | unet 3 |" in table
    assert "vae_decode 1: no rule for a / b (openvino)" in table and "0 of 1" in table


@pytest.mark.export
def test_a_pipeline_is_drawn_and_agrees(tmp_path: Path) -> None:
    row = drawn(known("DDPMPipeline"), "onnxruntime", ArtifactStore(tmp_path))
    assert row.agrees and row.compared == "picture" and row.engine_share == 1.0
    assert [(one.name, one.calls, one.torch_calls) for one in row.parts] == [("unet", 3, 0)]


@pytest.mark.skipif(sys.platform != "linux", reason="a process that is a copy")
def test_what_ends_the_process_is_a_row(tmp_path: Path) -> None:
    def end() -> object:
        os._exit(3)

    def fail() -> object:
        raise ValueError("no such size")

    for make, said in ((end, "the process ended with code 3"), (fail, "ValueError: no such size")):
        recipe = Recipe(pipeline="DDPMPipeline", kind="unconditional", make=make)  # type: ignore[arg-type]
        assert said in measure(recipe, "onnxruntime", tmp_path).failure


@pytest.mark.export
@pytest.mark.exhaustive
@pytest.mark.parametrize(
    "name", ["FluxPipeline", "PixArtSigmaPipeline", "QwenImagePipeline", "StableDiffusion3Pipeline"]
)
@pytest.mark.parametrize("target", ["onnxruntime", "openvino"])
def test_foreign_graphs_agree(name: str, target: str, tmp_path: Path) -> None:
    row = drawn(known(name), target, ArtifactStore(tmp_path))
    assert row.agrees and row.engine_share == 1.0
    assert not any(one.torch_calls for one in row.parts)
