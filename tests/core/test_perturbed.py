"""Guidance by a worse version of the denoiser: another entry, on every engine and in exports."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from perfuse import DiffusionPipeline, PAGGuidance, Perturbation, SmoothedEnergyGuidance
from perfuse.errors import InputError

Make = Callable[[str], Path]

GIVEN = {"prompt": "a red circle", "num_inference_steps": 3, "seed": 0, "output_type": "np"}
PAG = PAGGuidance(guidance_scale=3.0, pag_scale=4.0, pag_applied_layers="up")


def drawn(pipe: DiffusionPipeline, **more: Any) -> np.ndarray:
    return np.asarray(pipe(**{**GIVEN, **more}).images)


def test_the_worse_version_is_made_when_a_guider_asks(checkpoint: Make) -> None:
    pipe = DiffusionPipeline.from_pretrained(checkpoint("words"))
    usual = drawn(pipe, guidance_scale=3.0)
    names = set(pipe.spec.components)
    pag = drawn(pipe, guider=PAG)
    assert np.abs(pag - usual).max() > 1e-3
    assert set(pipe.spec.components) - names == {"perturbed_identity_up"}
    entry = pipe.spec.components["perturbed_identity_up"]
    assert entry.entry_of == pipe.spec.denoiser.name
    text = "pag:guidance_scale=3,pag_scale=4,pag_applied_layers=up"
    assert (drawn(pipe, guider=text) == pag).all()
    assert (drawn(pipe, guidance_scale=3.0) == usual).all()


def test_the_worse_version_follows_a_denoiser_that_is_replaced(checkpoint: Make) -> None:
    pipe = DiffusionPipeline.from_pretrained(checkpoint("words"))
    before = drawn(pipe, guider=PAG)
    other = DiffusionPipeline.from_pretrained(checkpoint("words")).unet
    for weight in other.parameters():
        weight.data = 0.9 * weight.data
    pipe.unet = other
    after = drawn(pipe, guider=PAG)
    assert np.abs(after - before).max() > 1e-3
    fresh = DiffusionPipeline.from_pretrained(checkpoint("words"), unet=other)
    assert (drawn(fresh, guider=PAG) == after).all()
    pipe.unet = None
    assert "perturbed_identity_up" not in pipe.spec.components


def test_a_program_has_no_worse_version(checkpoint: Make) -> None:
    pipe = DiffusionPipeline.from_pretrained(checkpoint("words"))
    program = pipe.program("unet")
    other = DiffusionPipeline.from_pretrained(checkpoint("words"), unet=program)
    with pytest.raises(InputError, match="worse version of unet, which was replaced by a program"):
        drawn(other, guider=PAG)


def test_layers_that_are_not_there(checkpoint: Make) -> None:
    pipe = DiffusionPipeline.from_pretrained(checkpoint("words"))
    with pytest.raises(InputError, match=r"with 'mid' in their names; it has .*attn1"):
        drawn(pipe, guider="pag")
    with pytest.raises(InputError, match="no regular expression"):
        drawn(pipe, guider="pag:pag_applied_layers=up(")
    plain = DiffusionPipeline.from_pretrained(checkpoint("tiny"))
    with pytest.raises(InputError, match="a UNet2DModel has none"):
        plain.entry(Perturbation(kind="skip", layers=("mid",)))


def test_entries_have_names_that_are_files() -> None:
    def entry(kind: str, *layers: str, amount: float = 0.0) -> str:
        return Perturbation(kind=kind, layers=layers, amount=amount).entry

    assert entry("identity", "mid") == "perturbed_identity_mid"
    names = {
        entry("identity", "up_blocks.0"),
        entry("identity", "up_blocks.1"),
        entry("identity", "up_blocks.(0|1)"),
        entry("identity", "mid", "up_blocks.0"),
        entry("blur", "mid", amount=1.5),
        entry("blur", "mid", amount=-1.0),
        entry("blur", "mid", amount=1.5000001),
        entry("blur", "mid"),
        entry("skip", "mid", "block"),
        entry("skip", "mid_block"),
    }
    assert len(names) == 10
    assert all(name.isidentifier() for name in names)


@pytest.mark.export
@pytest.mark.exhaustive
def test_an_engine_runs_it(checkpoint: Make) -> None:
    reference = drawn(DiffusionPipeline.from_pretrained(checkpoint("words")), guider=PAG)
    pipe = DiffusionPipeline.from_pretrained(checkpoint("words"), backend="openvino:CPU")
    assert np.abs(drawn(pipe, guider=PAG) - reference).max() <= 2 / 255
    assert pipe.target("perturbed_identity_up") == pipe.target("unet")


@pytest.mark.export
@pytest.mark.exhaustive
def test_an_export_holds_what_it_was_made_with(checkpoint: Make, tmp_path: Path) -> None:
    guider = SmoothedEnergyGuidance(
        guidance_scale=3.0, seg_blur_sigma=1.5, seg_guidance_layers="up", seg_guidance_scale=9.0
    )
    (worse,) = (one.perturbation for one in guider.branches if one.perturbation is not None)
    pipe = DiffusionPipeline.from_pretrained(checkpoint("words"), transforms=[worse.text])
    reference = drawn(pipe, guider=guider)
    assert np.abs(reference - drawn(pipe, guidance_scale=3.0)).max() > 4 / 255
    drawn(pipe, guider=PAG)  # what is made on the way is no part of the export
    folder = pipe.export(tmp_path / "exported", to="onnx")
    exported = DiffusionPipeline.from_pretrained(folder)
    assert worse.entry in exported.spec.components
    assert "perturbed_identity_up" not in exported.spec.components
    assert np.abs(drawn(exported, guider=guider) - reference).max() <= 2 / 255
    again = DiffusionPipeline.from_pretrained(folder, transforms=[worse.text])
    assert set(again.spec.components) == set(exported.spec.components)
    with pytest.raises(InputError, match=r"--transform 'perturbed:kind=identity,layers=up'"):
        drawn(exported, guider=PAG)
