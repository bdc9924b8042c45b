"""Decoding a large picture in tiles: the memory it takes, and how near it is to Diffusers' tiling.

Every decoding is a process of its own, and its memory is the most that was resident in it: libraries,
weights and all.
"""

import json
import subprocess
import sys
import tempfile
from argparse import ArgumentParser, Namespace
from pathlib import Path

import models
import numpy as np
from sidebyside import Row, command, say

_GB = 1e9
FORMATS = {"torch:cpu": None, "onnxruntime:cpu": "onnx", "openvino:CPU": "openvino"}
HERE = Path(__file__).parent


def options(parser: ArgumentParser) -> None:
    parser.add_argument("--engines", default=",".join(FORMATS), help="some of %(default)s")


def measure(options: Namespace) -> list[Row]:
    checkpoint = models.sd15(options.work, quick=options.quick)
    tile = 32 if options.quick else 64
    rows = []
    with tempfile.TemporaryDirectory(dir=options.work) as folder:
        decoding = _Decoding(Path(folder))
        for engine in options.engines.split(","):
            to = FORMATS[engine]
            model = checkpoint if to is None else models.exported(checkpoint, to, options.work)
            rows.append(_memory(decoding, engine, model, tile))
            rows.append(_seams(decoding, engine, model, checkpoint, tile))
    return rows


class _Decoding:
    """Decodings of random latents, each done once."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def run(self, engine: str, model: Path, size: int, *, tiling: bool) -> tuple[Path, int, int]:
        """The picture's file, and the most resident memory before it and in all, in bytes."""
        name = f"{engine.partition(':')[0]}-{size}-{'tiles' if tiling else 'whole'}"
        answer, picture = (self._folder / f"{name}.{kind}" for kind in ("json", "npy"))
        if not answer.is_file():
            say(f"{name}, {8 * size}²")
            latents = self._folder / f"{size}.npy"
            noise = np.random.default_rng(size).standard_normal((1, 4, size, size))
            np.save(latents, noise.astype(np.float32))
            command = [sys.executable, HERE / "decode_once.py", engine, model]
            command += [str(tiling).lower(), latents, picture]
            done = subprocess.run(
                list(map(str, command)), stdout=subprocess.PIPE, text=True, check=True
            )
            answer.write_text(done.stdout.splitlines()[-1], encoding="utf-8")
        memory = json.loads(answer.read_text(encoding="utf-8"))
        return picture, memory["loaded"], memory["peak"]


def _memory(decoding: _Decoding, engine: str, model: Path, tile: int) -> Row:
    large, small = 8 * 4 * tile, 8 * tile
    _, loaded, ours = decoding.run(engine, model, 4 * tile, tiling=True)
    _, before, theirs = decoding.run(engine, model, tile, tiling=False)
    return Row(
        what=f"Peak memory of decoding {large}² in tiles, {engine}",
        ours=ours / _GB,
        theirs=theirs / _GB,
        unit="GB",
        against=f"{small}² whole",
        figure=ours / theirs,
        target=1.5,
        note=f"{(ours - loaded) / _GB:.2f} and {(theirs - before) / _GB:.2f} GB more than when the "
        "decoder was loaded.",
    )


def _seams(decoding: _Decoding, engine: str, model: Path, checkpoint: Path, tile: int) -> Row:
    size = tile * 3 // 2
    ours = _levels(decoding.run(engine, model, size, tiling=True)[0])
    theirs = _levels(decoding.run("diffusers", checkpoint, size, tiling=True)[0])
    whole = _levels(decoding.run("diffusers", checkpoint, size, tiling=False)[0])
    ours_off, theirs_off = (float(np.abs(tiled - whole).max()) for tiled in (ours, theirs))
    return Row(
        what=f"What tiles change in a picture of {8 * size}², {engine}",
        ours=ours_off,
        theirs=theirs_off,
        unit="of 255",
        against="Diffusers' tiles",
        figure=ours_off - theirs_off,
        figure_unit="of 255",
        target=1.0,
        note="The figure is how much more; the two pictures differ by at most "
        f"{float(np.abs(ours - theirs).max()):.2g} of 255.",
    )


def _levels(picture: Path) -> np.ndarray:
    """Pixels from 0 to 255, not rounded."""
    return np.asarray((np.load(picture) / 2 + 0.5).clip(0, 1) * 255, dtype=np.float64)


if __name__ == "__main__":
    command(measure, __doc__, options)
