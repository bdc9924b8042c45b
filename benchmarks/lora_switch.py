"""Switching a LoRA on a pipeline that is loaded, beside the arithmetic of its deltas.

Rank 16, in every attention and its feed-forward, as published LoRAs are. The arithmetic is what numpy
takes to add the LoRA to each weight that it changes, and nothing else; a switch is all that happens
until the denoiser can be called with another scale. Engines that take other weights into a program
do; the others load the denoiser again, from its graph.
"""

import importlib.util
import itertools
import tempfile
import time
from argparse import Namespace
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import models
import numpy as np
from sidebyside import Row, command, compare, in_turns, say

RANK = 16
#: Each with the module that it needs, and what it does.
_ENGINES = {
    "torch:cpu": ("torch", "puts them in place"),
    "onnxruntime:cpu": ("onnxruntime", "makes its session anew"),
    "openvino:CPU": ("openvino", "compiles anew"),
    "xla:cpu": ("perfuse_xla", "puts them in place"),
}


def measure(options: Namespace) -> list[Row]:
    checkpoint = models.sd15(options.work, quick=options.quick)
    name = "a UNet of 92 M" if options.quick else "SD 1.5-sized"
    rows = []
    for engine, (module, _) in _ENGINES.items():
        if importlib.util.find_spec(module) is not None:
            rows.append(_row(options, checkpoint, name, engine))
            say(f"{engine}: {rows[-1].ours:.0f} ms beside {rows[-1].theirs:.0f} ms")
    return rows


def _row(options: Namespace, checkpoint: Path, name: str, engine: str) -> Row:
    from perfuse import ArtifactStore, DiffusionPipeline

    with tempfile.TemporaryDirectory(dir=options.work) as folder:
        pipe = DiffusionPipeline.from_pretrained(
            checkpoint, backend=engine, store=ArtifactStore(Path(folder))
        )
        plain = pipe.component("unet")
        shapes = pipe.weight_shapes(plain)
        pipe.load_lora_weights(dict(_lora(shapes)), adapter_name="style")
        pipe("a red circle", num_inference_steps=1, height=64, width=64, seed=0)
        weights = _weights(plain)
        scales = itertools.cycle((0.25, 0.5, 0.75, 1.0))

        def switch() -> float:
            began = time.perf_counter()
            pipe.set_adapters("style", next(scales))
            pipe.program("unet")
            return time.perf_counter() - began

        def arithmetic() -> float:
            changes = pipe.component("unet").changes
            began = time.perf_counter()
            for weight in changes.names:
                changes.of(weight, weights[weight])
            return time.perf_counter() - began

        sides = {"switch": switch, "arithmetic": arithmetic}
        in_turns(2, sides)
        found = in_turns(options.rounds or (5 if options.quick else 9), sides)
        touched = sum(weights[one].nbytes for one in pipe.component("unet").changes.names)
        pipe.close()
    how = _ENGINES[engine][1]
    return compare(
        f"Switching a LoRA of rank {RANK}, {name}, on {engine}",
        found["switch"],
        found["arithmetic"],
        unit="ms",
        against="the arithmetic of its deltas",
        target=2.0 if "in place" in how else None,
        note=f"{touched / 1e6:.0f} MB of weights are touched; {engine} {how}.",
    )


def _weights(component: Any) -> dict[str, Any]:
    """The weights of a component as float32 arrays, by name."""
    from perfuse.capture import build, named_weights

    found = named_weights(build(component))
    return {name: weight.detach().float().numpy() for name, weight in found.items()}


def _lora(shapes: Mapping[str, tuple[int, ...]]) -> Iterator[tuple[str, Any]]:
    """Random factors for the layers that LoRAs are made for, in kohya's layout."""
    numbers = np.random.default_rng(0)
    for name, shape in shapes.items():
        if len(shape) == 2 and ".attentions." in name:
            layer = f"lora_unet_{name.removesuffix('.weight').replace('.', '_')}"
            down = numbers.standard_normal((RANK, shape[1]), np.float32)
            up = numbers.standard_normal((shape[0], RANK), np.float32) * 0.01
            yield f"{layer}.lora_down.weight", down
            yield f"{layer}.lora_up.weight", up.astype(np.float32)
            yield f"{layer}.alpha", np.array(RANK / 2, np.float32)


if __name__ == "__main__":
    command(measure, __doc__)
