"""How much memory weights take, and what is kept of them."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from perfuse import DiffusionPipeline
from perfuse.capture import build
from perfuse.cli import main
from perfuse.errors import InputError
from perfuse.run.residency import Divisible, Residency
from perfuse.sources.checkpoint import Checkpoint

Make = Callable[[str], Path]

SIZES = {"text_encoder": 3, "text_encoder_2": 5, "unet": 10, "control": 4, "vae_decoder": 2}
PLAN = Residency(
    sizes=SIZES,
    stages=(("text_encoder",), ("text_encoder_2",), ("unet", "control"), ("vae_decoder",)),
)


def test_the_least_is_what_must_be_there_together() -> None:
    # A third of what is asked for is left to what lies between layers.
    assert PLAN.whole == 24 and PLAN.least == 21
    assert PLAN.budget("low") == 14 and PLAN.budget(24) == 16 and PLAN.budget("1kB") == 666
    assert PLAN.budget("auto") >= 14
    assert dataclasses.replace(PLAN, between=10).least == 24
    with pytest.raises(InputError, match=r"unet and control alone take .* MB, which is the least"):
        PLAN.budget(20)
    for wrong in ("much", "-3GB", "GB"):
        with pytest.raises(InputError, match="a number and a unit"):
            PLAN.budget(wrong)


@pytest.mark.parametrize(
    ("held", "wanted", "budget", "gone"),
    [
        (["text_encoder"], "text_encoder_2", 8, []),
        (["text_encoder"], "text_encoder_2", 7, ["text_encoder"]),
        (["text_encoder", "text_encoder_2"], "unet", 15, ["text_encoder"]),
        (["text_encoder", "unet"], "control", 14, ["text_encoder"]),
        (["unet", "control"], "vae_decoder", 14, ["unet"]),
        (["unet", "control"], "vae_decoder", -1, ["unet", "control"]),
    ],
)
def test_the_oldest_go_first(held: list[str], wanted: str, budget: int, gone: list[str]) -> None:
    assert PLAN.released(held, wanted, budget) == gone


def test_what_has_no_room_runs_in_pieces() -> None:
    unet = Divisible(footprint=2.0, largest=1)
    plan = dataclasses.replace(PLAN, divisible={"unet": unet}, footprints={"unet": 2.0})
    assert plan.least == 9  # two for a piece of the UNet, four for its ControlNet
    assert plan.room("unet", 24) is None and plan.room("text_encoder", 6) is None
    assert plan.room("unet", 14) == 5 and plan.room("unet", 6) == 1
    assert plan.of(["unet", "control"], 14) == 14 and plan.of(["unet", "control"], 24) == 24
    assert plan.released(["text_encoder", "unet"], "control", 14) == ["text_encoder"]
    assert plan.released(["unet", "control"], "vae_decoder", -1) == ["unet", "control"]
    with pytest.raises(InputError, match="in the smallest pieces, which is the least"):
        plan.budget(8)


def test_a_pipeline_keeps_what_fits(checkpoint: Make) -> None:
    pytest.importorskip("torch")
    pipe = DiffusionPipeline.from_pretrained(checkpoint("words"), backend="torch:cpu")
    found, given = pipe.residency, {"num_inference_steps": 2, "seed": 0, "output_type": "np"}
    order = [name for stage in found.stages for name in stage]
    assert sorted(order, key=["text_encoder", "vae_encoder", "unet", "vae_decoder"].index) == order
    before = pipe("red", **given).images
    everything = set(pipe.programs())
    ample = 2 * found.whole + found.between
    for memory, kept in (("low", {"vae_decoder"}), (ample, everything), (None, everything)):
        pipe.keep_within(memory)
        assert np.array_equal(pipe("red", **given).images, before)
        if memory == "low":
            assert found.of(sorted(pipe.programs()), found.budget("low")) <= found.least
        assert kept <= set(pipe.programs())
    with pytest.raises(InputError, match="the least that would do"):
        pipe.keep_within("1kB")
    assert np.array_equal(pipe("red", **given).images, before)


def test_halves_take_half(checkpoint: Make) -> None:
    whole, half = (
        DiffusionPipeline.from_pretrained(checkpoint("words"), precision=precision).residency
        for precision in ("float32", "float16")
    )
    assert half.sizes["unet"] * 2 == whole.sizes["unet"]


@pytest.mark.parametrize(
    ("kind", "parts"),
    [
        ("words", ("vae_encoder", "vae_decoder")),
        ("qwen-edit", ("text_encoder", "text_encoder_vision")),
        ("klein", ("text_encoder",)),  # which has layers that nobody reads
    ],
)
def test_what_shares_a_folder_counts_once(
    checkpoint: Make, kind: str, parts: tuple[str, ...]
) -> None:
    """A component takes what its module is built of, and no tensor of another's."""
    pytest.importorskip("torch")
    source = Checkpoint.open(checkpoint(kind))
    sizes = DiffusionPipeline.from_pretrained(source, backend="torch:cpu").residency.sizes
    for name in parts:
        module = build(source.component(name, precision="float32"))
        assert sizes[name] == 4 * sum(one.numel() for one in module.parameters())


def test_the_command_line_says_what_it_would_do() -> None:
    def asked(*arguments: str) -> str:
        done = CliRunner().invoke(main, ["inspect", *arguments])
        assert done.exit_code == 0, done.output
        return done.output

    found = json.loads(asked("--memory", "low", "--json"))
    assert found["budget"] < found["least"]
    assert all(row["bytes"] <= found["budget"] for row in found["plan"])
    assert any("unet" in row["in_pieces"] for row in found["plan"])
    assert all(set(row["runs"]) <= set(row["in_memory"]) for row in found["plan"])
    told = asked("--memory", "1GB")
    assert "at least" in told and "in memory: text_encoder" in told
    assert asked("--memory") == asked("--memory", "auto")
    done = CliRunner().invoke(main, ["inspect", "--memory", "10kB"])
    assert done.exit_code == 2 and "the least that would do" in done.output
