"""Attention that hides padding, in ONNX files on ONNX Runtime: as one operator, and score by score.

One layer of Z-Image's attention: 30 heads of 128 channels, a picture's tokens and 64 of a prompt, some of
them padding. Score by score is how the same mask is computed when it is given for each head. Each run is
a process of its own, whose processor time and memory are counted.
"""

import json
import subprocess
import sys
import tempfile
from argparse import ArgumentParser, Namespace
from pathlib import Path

from sidebyside import Row, command, compare, say

_MB = 1e6
_TEXT = 64

#: What the child runs: one call to be ready, and one that counts.
_CHILD = """
import json, sys, time
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from torch.nn import functional as F

from perfuse.backend import Component
from perfuse.memory import peak_memory
from perfuse.spec import ComponentSpec, Signature, TensorSpec
from perfuse_exporters.onnx.exporter import OnnxExporter

folder, side, tokens = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
HEADS, WIDTH = 30, 128


class Layer(torch.nn.Module):
    def forward(self, query, key, value, bias):
        if side == "theirs":
            bias = bias.expand(-1, HEADS, -1, -1)
        return (F.scaled_dot_product_attention(query, key, value, attn_mask=bias),)


heads = tuple(
    TensorSpec(name=name, dtype="float", shape=("batch", HEADS, "tokens", WIDTH))
    for name in ("query", "key", "value")
)
bias = TensorSpec(name="bias", dtype="float", shape=("batch", 1, 1, "tokens"))
output = TensorSpec(name="out", dtype="float", shape=("batch", HEADS, "tokens", WIDTH))
signature = Signature(inputs=(*heads, bias), outputs=(output,))
spec = ComponentSpec(
    name="layer", class_name="Layer", folder="layer", config={}, signature=signature
)
file = OnnxExporter().export(Component(spec=spec, build=Layer), folder)
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = 1
session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
rng = np.random.default_rng(0)
given = {
    name: rng.standard_normal((1, HEADS, tokens, WIDTH), np.float32)
    for name in ("query", "key", "value")
}
hidden = np.zeros((1, 1, 1, tokens), np.float32)
hidden[..., -40:] = np.finfo(np.float32).min
before = peak_memory()
session.run(None, {**given, "bias": hidden})
began = time.process_time()
(out,) = session.run(None, {**given, "bias": hidden})
took = time.process_time() - began
np.save(folder / "out.npy", out[:, :, ::97])
print(json.dumps({"seconds": took, "bytes": peak_memory() - before}))
"""


def options(parser: ArgumentParser) -> None:
    parser.add_argument("--sides", default="512,1024", help="of pictures, in pixels: %(default)s")


def measure(options: Namespace) -> list[Row]:
    rounds = 1 if options.quick else (options.rounds or 3)
    sides = [int(side) for side in options.sides.split(",")]
    return [_row(side, rounds) for side in (sides[:1] if options.quick else sides)]


def _row(pixels: int, rounds: int) -> Row:
    import numpy as np

    tokens = (pixels // 16) ** 2 + _TEXT
    say(f"{tokens} tokens")
    found: dict[str, list[dict[str, float]]] = {"ours": [], "theirs": []}
    drawn = {}
    for number in range(rounds):
        for side in list(found)[:: 1 if number % 2 == 0 else -1]:
            with tempfile.TemporaryDirectory() as folder:
                child = [sys.executable, "-c", _CHILD, folder, side, str(tokens)]
                done = subprocess.run(child, check=True, stdout=subprocess.PIPE, text=True)
                found[side].append(json.loads(done.stdout.splitlines()[-1]))
                drawn[side] = np.load(Path(folder) / "out.npy")
    gap = float(np.abs(drawn["ours"] - drawn["theirs"]).max())
    if gap > 1e-4:
        raise SystemExit(f"{tokens} tokens: the two differ by {gap:.2g}.")
    memory = {side: max(one["bytes"] for one in found[side]) / _MB for side in found}
    return compare(
        f"Attention of {tokens} tokens that hides padding, ONNX Runtime",
        [one["seconds"] for one in found["ours"]],
        [one["seconds"] for one in found["theirs"]],
        unit="s",
        against="score by score",
        target=1.0,
        note=f"{memory['ours']:.0f} MB beyond its inputs, {memory['theirs']:.0f} MB score by score; "
        f"they differ by {gap:.1g}.",
    )


if __name__ == "__main__":
    command(measure, __doc__, options)
