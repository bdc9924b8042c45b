"""First-Block Cache and MagCache against Diffusers' hooks, DBCache against its rule on Diffusers' blocks."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")

from tests.counted import Counted
from tests.deepened import deepened
from tests.oracle.pairs import Pair, make_gentle
from tests.oracle.test_klein import normalised

from perfuse import DiffusionPipeline
from perfuse.transforms.magcache import measured
from perfuse_conformance.checkpoints import make_checkpoint

Make = Callable[[str], Path]

STEPS = 8
#: Diffusers' class of each checkpoint, and its call; without guidance there is one branch, so that
#: both decide by the same.
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "flux": ("FluxPipeline", {"max_sequence_length": 24}),
    "sd3": ("StableDiffusion3Pipeline", {"guidance_scale": 1.0, "max_sequence_length": 24}),
    "qwen-image": ("QwenImagePipeline", {}),
    "z-image": ("ZImagePipeline", {"guidance_scale": 0.0}),
    "pixart": (
        "PixArtAlphaPipeline",
        {
            "guidance_scale": 1.0,
            "max_sequence_length": 24,
            "use_resolution_binning": False,
            "clean_caption": False,
        },
    ),
    "klein": ("Flux2KleinPipeline", {"guidance_scale": 1.0, "max_sequence_length": 24}),
}
HOOKS = (
    "fbc_leader_block_hook",
    "fbc_block_hook",
    "mag_cache_leader_block_hook",
    "mag_cache_block_hook",
)


def blocks_of(transformer: Any) -> list[Any]:
    names = ("transformer_blocks", "single_transformer_blocks", "layers")
    return [block for name in names for block in getattr(transformer, name, ())]


class DBCache:
    """DBCache (https://github.com/vipshop/cache-dit) on the blocks of a Diffusers transformer.

    The first blocks and the last ones always run. Where what the first ones add to the picture changes
    little since the middle ones ran last, these add what they added then, to the picture and to the text.
    """

    def __init__(self, transformer: Any, first: int, last: int, threshold: float) -> None:
        blocks = blocks_of(transformer)
        self.first, self.end = first, len(blocks) - last
        self.threshold = threshold
        self.sign: Any = None
        self.computed: list[None] = []
        for number, block in enumerate(blocks):
            forward = partial(type(block).forward, block)  # without another cache on it
            block.forward = partial(self._call, number, forward)

    def _call(self, number: int, forward: Any, *arguments: Any, **named: Any) -> Any:
        hidden = named["hidden_states"] if not arguments else arguments[0]
        text = named["encoder_hidden_states"]
        if number == 0:
            self.start = hidden
        if number == self.first:
            self.near, change = (hidden, text), hidden - self.start
            self.little = self.sign is not None and bool(
                (change - self.sign).abs().mean() <= self.threshold * self.sign.abs().mean()
            )
            if not self.little:
                self.sign = change
                self.computed.append(None)
        if self.first <= number < self.end and self.little:
            if number == self.first:
                hidden, text = hidden + self.added[0], text + self.added[1]
            return (text, hidden) if self.two_streams else hidden
        result = forward(*arguments, **named)
        self.two_streams = isinstance(result, tuple)
        after = (result[1], result[0]) if isinstance(result, tuple) else (result, text)
        if number == self.end - 1:
            self.added = [one - other for one, other in zip(after, self.near, strict=True)]
        return result


@contextmanager
def hooked(transformer: Any, apply: Callable[[Any], None]) -> Iterator[list[None]]:
    """A Diffusers transformer with a cache on; yields what has an item for each computed step."""
    from diffusers.hooks import HookRegistry
    from diffusers.hooks.hooks import CacheContext, _set_cache_context

    computed: list[None] = []
    last = blocks_of(transformer)[-1]
    norm = next(one for one in last.modules() if isinstance(one, torch.nn.Linear))
    counting = norm.register_forward_hook(lambda *_: computed.append(None))
    apply(transformer)
    registry = HookRegistry.check_if_exists_or_initialize(transformer)
    registry.invalidate_child_registries_cache()
    _set_cache_context(transformer, CacheContext(name="cond"))  # pipelines of some classes set none
    try:
        yield computed
    finally:
        counting.remove()
        for name in HOOKS:
            registry.remove_hook(name, recurse=True)
        registry.invalidate_child_registries_cache()


def given(kind: str) -> dict[str, Any]:
    call = {"prompt": "a red circle", "height": 16, "width": 16, "num_inference_steps": STEPS}
    return {**call, **KINDS[kind][1]}


class Klein(Pair):
    """Diffusers gives FLUX.2's latents out unpacked and denormalised."""

    def run(self, *given: Any, **inputs: Any) -> tuple[Any, Any]:
        ours, theirs = super().run(*given, **inputs)
        return ours, normalised(self.theirs, theirs)


def opened(folder: Path, kind: str) -> Pair:
    if kind in ("pixart", "qwen-image"):
        make_gentle(folder, part="transformer", layer="proj_out", factor=0.3)
    return (Klein if kind == "klein" else Pair).open(folder, KINDS[kind][0])


def check(pair: Pair, folder: Path, transform: str, apply: Any, **inputs: Any) -> int:
    """Both compute equally many steps, and draw the same; returns how many steps those are."""
    ours = DiffusionPipeline.from_pretrained(folder, backend="torch:cpu", transforms=[transform])
    with hooked(pair.theirs.transformer, apply) as computed, Counted(ours) as counted:
        type(pair)(ours, pair.theirs).check(**inputs)
    steps = len(counted.steps("transformer"))
    assert steps == len(computed)
    return steps


@pytest.fixture
def z_image_known(monkeypatch: pytest.MonkeyPatch) -> None:
    """Diffusers' hooks look for an argument that the blocks of Z-Image call otherwise."""
    from diffusers.hooks._helpers import TransformerBlockRegistry
    from diffusers.models.transformers.transformer_z_image import ZImageTransformerBlock

    known = TransformerBlockRegistry.get(ZImageTransformerBlock)
    monkeypatch.setattr(known, "hidden_states_argument_name", "x")


#: Of the others Diffusers' hook fails: their last block gives no text, or one sequence, or calls its
#: argument otherwise.
@pytest.mark.parametrize("kind", ["flux", "qwen-image", "pixart"])
def test_first_block_cache(tmp_path: Path, kind: str) -> None:
    from diffusers.hooks import FirstBlockCacheConfig
    from diffusers.hooks.first_block_cache import apply_first_block_cache

    folder = make_checkpoint(tmp_path / kind, kind)
    pair, found = opened(folder, kind), set()
    for threshold in (0.02, 1.0):

        def first(transformer: Any, threshold: float = threshold) -> None:
            apply_first_block_cache(transformer, FirstBlockCacheConfig(threshold=threshold))

        found.add(check(pair, folder, f"first-block:threshold={threshold}", first, **given(kind)))
    assert len(found) > 1


@pytest.mark.parametrize(
    ("kind", "first", "last"),
    [
        ("sd3", 1, 1),
        ("flux", 1, 1),  # of blocks with two streams, and with one
        ("flux", 2, 1),
        ("flux", 1, 2),
        ("qwen-image", 1, 2),
        ("pixart", 1, 1),
    ],
)
def test_last_blocks(tmp_path: Path, kind: str, first: int, last: int) -> None:
    folder = deepened(make_checkpoint(tmp_path / "two", kind), tmp_path / kind)
    pair, found = opened(folder, kind), set()
    for threshold in (0.02, 0.1, 1.0):
        theirs = DBCache(pair.theirs.transformer, first, last, threshold)
        text = f"first-block:blocks={first},last={last},threshold={threshold}"
        ours = DiffusionPipeline.from_pretrained(folder, backend="torch:cpu", transforms=[text])
        with Counted(ours) as counted:
            type(pair)(ours, pair.theirs).check(**given(kind))
        assert len(counted.steps("transformer")) == len(theirs.computed)
        found.add(len(theirs.computed))
    assert len(found) > 1


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.usefixtures("z_image_known")
def test_mag_cache(tmp_path: Path, kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    from diffusers.hooks import MagCacheConfig
    from diffusers.hooks.mag_cache import apply_mag_cache

    folder = make_checkpoint(tmp_path / kind, kind)
    pair, inputs, found = opened(folder, kind), given(kind), set()

    def calibrate(transformer: Any) -> None:
        apply_mag_cache(transformer, MagCacheConfig(calibrate=True, num_inference_steps=STEPS))

    with hooked(pair.theirs.transformer, calibrate):
        pair.check(**inputs)
    theirs = json.loads(capsys.readouterr().out.strip().splitlines()[-1])
    text = measured(pair.ours, seed=0, **inputs)
    ratios = [float(one) for one in text.partition("=")[2].split("+")]
    # of Z-Image Diffusers also counts the caption's tokens, which nothing is drawn of
    assert ratios == pytest.approx(theirs, abs=0.1 if kind == "z-image" else 2e-5)
    for threshold in (0.001, 0.5):

        def skip(transformer: Any, threshold: float = threshold) -> None:
            settings = {"mag_ratios": ratios, "num_inference_steps": STEPS}
            apply_mag_cache(transformer, MagCacheConfig(threshold=threshold, **settings))

        found.add(check(pair, folder, f"{text},threshold={threshold}", skip, **inputs))
    assert len(found) > 1
