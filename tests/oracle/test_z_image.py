"""Z-Image's pictures against Diffusers': same weights, same seed."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")

from tests.oracle.pairs import Pair

from perfuse import DiffusionPipeline
from perfuse.errors import CheckpointError, InputError
from perfuse_conformance.cases.checkpoint_parts import edit_json
from perfuse_conformance.checkpoints import make_checkpoint

SHORT, LONG = "a red circle", "a blue square on the white background " * 9
SMALL = {"height": 16, "width": 16}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("z"), "z-image")


@pytest.fixture(scope="module")
def pair(folder: Path) -> Pair:
    return Pair.open(folder, "ZImagePipeline")


def check(pair: Pair, seed: Any = 0, **inputs: Any) -> np.ndarray:
    """The latents agree; Diffusers writes into lists of prompts, so each side has its own."""
    lists = {name: list(value) for name, value in inputs.items() if isinstance(value, list)}
    return pair.check(seed, own=lists, **inputs)


class TestText:
    @pytest.mark.parametrize(
        "inputs",
        [
            {},
            {"guidance_scale": 0.0},
            {"cfg_normalization": True},
            {"cfg_truncation": 0.3},
            {"prompt": LONG, "max_sequence_length": 40},
            {"height": 16, "width": 28},
            {"sigmas": [1.0, 0.7, 0.2]},
        ],
        ids=lambda inputs: "-".join(inputs) or "plain",
    )
    def test_latents(self, inputs: dict[str, Any], pair: Pair) -> None:
        check(pair, **{"prompt": SHORT, **SMALL, **inputs})

    def test_captions_of_two_lengths_and_several_pictures(self, pair: Pair) -> None:
        """The place of a picture follows from its own caption's length."""
        inputs = {"num_images_per_prompt": 2, "height": 16, "width": 24}
        texts = {"prompt": [SHORT, LONG], "negative_prompt": [LONG, "x"]}
        check(pair, [1, 2, 3, 4], guidance_scale=2.0, **texts, **inputs)

    def test_pictures(self, pair: Pair) -> None:
        pair.check_pictures(prompt=SHORT, **SMALL)

    def test_its_own_states(self, pair: Pair) -> None:
        states = torch.randn(37, 32, generator=torch.Generator().manual_seed(0))
        inputs = {"prompt_embeds": [states], "negative_prompt_embeds": [states[:5]]}
        pair.check(**inputs, **SMALL)


@pytest.mark.parametrize("times", [1, 2])
def test_a_callback_has_lists_of_states(times: int, pair: Pair) -> None:
    seen: dict[int, list[Any]] = {}

    def shorter(pipe: Any, index: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        states = [one.clone() for one in tensors["prompt_embeds"]]
        seen.setdefault(id(pipe), []).append(states)
        if index == 0:
            return {"prompt_embeds": [one[:-5] * 0.5 for one in states]}
        if index == 1:  # longer than any before
            return {"prompt_embeds": [torch.cat([one, *[one] * 4]) for one in states]}
        return {}

    given = {
        "prompt": [SHORT, LONG],
        "num_images_per_prompt": times,
        "callback_on_step_end": shorter,
        "callback_on_step_end_tensor_inputs": ["prompt_embeds"],
        **SMALL,
    }
    changed = check(pair, **given)
    plain = check(pair, **{**given, "callback_on_step_end": None})
    assert np.abs(changed - plain).max() > 1e-3
    theirs, ours = seen.values()
    assert len(theirs) == len(ours) == 4
    for left, right in zip(theirs, ours, strict=True):
        assert [one.shape for one in left] == [one.shape for one in right]
        for one, other in zip(left, right, strict=True):
            assert (one - other).abs().max() < 1e-4


@pytest.mark.parametrize("value", [[], [torch.ones(3, 5)], [torch.ones(3, 32)] * 2])
def test_a_callback_that_returns_no_states(value: Any, pair: Pair) -> None:
    with pytest.raises(InputError, match=r"1 arrays \[tokens, 32\] are needed"):
        pair.ours(SHORT, **SMALL, callback_on_step_end=lambda *_: {"prompt_embeds": value})


def test_from_a_picture(pair: Pair) -> None:
    other = pair.like("ZImageImg2ImgPipeline")
    picture = np.random.default_rng(0).integers(0, 256, (16, 24, 3), dtype=np.uint8)
    from PIL import Image

    image = Image.fromarray(picture)
    other.check(prompt=SHORT, image=image, strength=0.6)


class TestBadInput:
    def test_a_size(self, pair: Pair) -> None:
        with pytest.raises(InputError, match="multiples of 4"):
            pair.ours(SHORT, height=18, width=16)

    def test_what_is_cut_off_is_said(self, pair: Pair) -> None:
        with pytest.warns(UserWarning, match="was cut off.*assistant"):
            pair.ours(LONG, max_sequence_length=40, num_inference_steps=1, **SMALL)

    @pytest.mark.parametrize(
        ("part", "change", "said"),
        [
            ("transformer", {"new_kind_of_norm": "other"}, "new_kind_of_norm"),
            ("transformer", {"siglip_feat_dim": 1152}, "siglip_feat_dim"),
            ("transformer", {"cap_feat_dim": 64}, "text states of width 64; text_encoder gives 32"),
            ("tokenizer", {"chat_template": ...}, "chat template"),
        ],
    )
    def test_a_checkpoint(
        self, part: str, change: dict[str, Any], said: str, tmp_path: Path, folder: Path
    ) -> None:
        import shutil

        model = shutil.copytree(folder, tmp_path / "model")
        name = "tokenizer_config.json" if part == "tokenizer" else "config.json"
        edit_json(model / part / name, **change)
        with pytest.raises(CheckpointError, match=said):
            DiffusionPipeline.from_pretrained(model, backend="torch:cpu")

    def test_components_without_a_chat_template(self, pair: Pair) -> None:
        """What wraps the prompts is read from a checkpoint's files."""
        import perfuse

        pipe = perfuse.ZImagePipeline(**pair.theirs.components)
        with pytest.raises(InputError, match="chat template"):
            pipe(SHORT, num_inference_steps=1, **SMALL)
