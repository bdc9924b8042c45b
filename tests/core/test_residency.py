"""How much memory weights take, and what is kept of them."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from perfuse import DiffusionPipeline
from perfuse.cli import main
from perfuse.errors import InputError
from perfuse.run.residency import Residency

Make = Callable[[str], Path]

SIZES = {"text_encoder": 3, "text_encoder_2": 5, "unet": 10, "control": 4, "vae_decoder": 2}
PLAN = Residency(
    sizes=SIZES,
    stages=(("text_encoder",), ("text_encoder_2",), ("unet", "control"), ("vae_decoder",)),
)


def test_the_least_is_what_must_be_there_together() -> None:
    assert PLAN.whole == 24 and PLAN.least == 14
    assert PLAN.budget("low") == 14 and PLAN.budget(20) == 20 and PLAN.budget("1kB") == 1000
    assert PLAN.budget("auto") >= 14
    with pytest.raises(InputError, match=r"unet and control alone take .* GB, which is the least"):
        PLAN.budget(13)
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


def test_a_pipeline_keeps_what_fits(checkpoint: Make) -> None:
    pytest.importorskip("torch")
    pipe = DiffusionPipeline.from_pretrained(checkpoint("words"), backend="torch:cpu")
    found, given = pipe.residency, {"num_inference_steps": 2, "seed": 0, "output_type": "np"}
    order = [name for stage in found.stages for name in stage]
    assert sorted(order, key=["text_encoder", "vae_encoder", "unet", "vae_decoder"].index) == order
    before = pipe("red", **given).images
    everything = set(pipe.programs())
    for memory, kept in (("low", {"vae_decoder"}), (found.whole, everything), (None, everything)):
        pipe.keep_within(memory)
        assert np.array_equal(pipe("red", **given).images, before)
        assert found.of(sorted(pipe.programs())) <= (
            found.whole if memory != "low" else found.least
        )
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


def test_the_command_line_says_what_it_would_do() -> None:
    def asked(*arguments: str) -> str:
        done = CliRunner().invoke(main, ["inspect", *arguments])
        assert done.exit_code == 0, done.output
        return done.output

    found = json.loads(asked("--memory", "low", "--json"))
    assert found["budget"] == found["least"] < found["whole"]
    assert all(row["bytes"] <= found["budget"] for row in found["plan"])
    assert all(set(row["runs"]) <= set(row["in_memory"]) for row in found["plan"])
    told = asked("--memory", "1GB")
    assert "at least" in told and "in memory: text_encoder" in told
    done = CliRunner().invoke(main, ["inspect", "--memory", "10kB"])
    assert done.exit_code == 2 and "the least that would do" in done.output
