"""Pyramid Attention Broadcast against Diffusers' hook: same attentions computed, same latents."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")

from tests.counted import Counted
from tests.oracle.pairs import Pair, make_gentle

from perfuse import DiffusionPipeline
from perfuse_conformance.checkpoints import make_checkpoint

#: Diffusers' class of each checkpoint, and its call, with guidance.
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "pixart": (
        "PixArtAlphaPipeline",
        {"height": 16, "width": 16, "max_sequence_length": 24, "clean_caption": False},
    ),
    "sana": (
        "SanaPipeline",
        {"height": 32, "width": 32, "max_sequence_length": 24, "complex_human_instruction": []},
    ),
    "sd3": ("StableDiffusion3Pipeline", {"height": 16, "width": 16, "max_sequence_length": 24}),
    "flux": ("FluxPipeline", {"height": 16, "width": 16, "max_sequence_length": 24}),
    "qwen-image": ("QwenImagePipeline", {"height": 16, "width": 16}),
}


@contextmanager
def broadcasting(transformer: Any, scale: float, **ranges: Any) -> Iterator[dict[str, int]]:
    """A Diffusers transformer with the hook on; yields how often each kind is computed in a block.

    The timesteps that the transformer is given are times ``scale`` those of the schedule.
    """
    from diffusers import PyramidAttentionBroadcastConfig, apply_pyramid_attention_broadcast
    from diffusers.hooks import HookRegistry

    now, computed = [0.0], {"spatial": 0, "cross": 0}

    def look(module: Any, arguments: Any, named: Any) -> None:
        now[0] = float(named["timestep"].flatten()[0]) / scale

    def count(kind: str) -> Any:
        def add(*_: Any) -> None:
            computed[kind] += 1

        return add

    block = transformer.transformer_blocks[0]
    attentions = {"spatial": getattr(block, "attn1", None) or block.attn}
    attentions |= {"cross": block.attn2} if hasattr(block, "attn1") else {}
    handles = [one.to_q.register_forward_hook(count(kind)) for kind, one in attentions.items()]
    handles.append(transformer.register_forward_pre_hook(look, with_kwargs=True))
    config = PyramidAttentionBroadcastConfig(current_timestep_callback=lambda: now[0], **ranges)
    apply_pyramid_attention_broadcast(transformer, config)
    try:
        yield computed
    finally:
        for handle in handles:
            handle.remove()
        registry = HookRegistry.check_if_exists_or_initialize(transformer)
        registry.remove_hook("pyramid_attention_broadcast", recurse=True)


@pytest.mark.parametrize(
    ("kind", "spatial", "cross", "between"),
    [
        ("pixart", 2, 4, (100, 800)),
        ("pixart", 3, 2, (0, 2000)),
        ("pixart", 0, 3, (100, 800)),
        ("sana", 2, 3, (200, 900)),
        ("sd3", 2, 0, (100, 800)),
        ("flux", 2, 0, (100, 800)),  # blocks of two streams, and of one
        ("qwen-image", 3, 0, (0, 2000)),
    ],
)
def test_what_is_drawn(
    tmp_path: Path, kind: str, spatial: int, cross: int, between: tuple[int, int]
) -> None:
    folder = make_checkpoint(tmp_path / kind, kind)
    make_gentle(folder, part="transformer", layer="proj_out", factor=0.3)
    name, call = KINDS[kind]
    call = {"prompt": "a red circle", "num_inference_steps": 9, "guidance_scale": 4.5, **call}
    call |= {"use_resolution_binning": False} if kind in ("pixart", "sana") else {}
    pair = Pair.open(folder, name)
    text = f"pab:spatial={spatial},cross={cross},start={between[0]},stop={between[1]}"
    ours = DiffusionPipeline.from_pretrained(folder, backend="torch:cpu", transforms=[text])
    every = {"spatial": spatial, "cross": cross}
    ranges: dict[str, Any] = {f"{k}_attention_block_skip_range": n for k, n in every.items() if n}
    ranges |= {f"{k}_attention_timestep_skip_range": between for k, n in every.items() if n}
    scale = 0.001 if kind in ("flux", "qwen-image") else 1
    watched = broadcasting(pair.theirs.transformer, scale, **ranges)
    with watched as computed, Counted(ours) as counted:
        found = Pair(ours, pair.theirs).check(**call)
    for one in (kind for kind, number in every.items() if number):
        own = {name: len(counted.steps(name)) for name in counted.calls if "former" in name}
        assert sum(n for name, n in own.items() if one not in name) == computed[one] < 9
    assert abs(pair.check(**call) - found).max() > 1e-3  # against nothing left out
