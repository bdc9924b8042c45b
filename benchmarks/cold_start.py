"""Cold start: from the command to the picture, perfuse and a hand-written script side by side.

Both are whole processes that draw the same picture from the same exported folder; the pictures are
compared. And what `import perfuse` takes over starting Python.
"""

import sys
import tempfile
from argparse import Namespace
from pathlib import Path

import models
import numpy as np
from PIL import Image
from sidebyside import Row, command, compare, in_turns, run_process, say

PROMPT = "a small red circle at the top left on a white background"
STEPS, GUIDANCE, SEED = 20, 7.5, 0


def measure(options: Namespace) -> list[Row]:
    rounds = options.rounds or (5 if options.quick else 25)
    with tempfile.TemporaryDirectory(dir=options.work) as folder:
        return [*_drawing(models.shapes(options.model), Path(folder), rounds), *_importing(rounds)]


def _drawing(checkpoint: Path, work: Path, rounds: int) -> list[Row]:
    perfuse = Path(sys.executable).with_name("perfuse")
    artifact = work / "shapes"
    say("exporting shapes")
    run_process([perfuse, "export", "--model", checkpoint, "--to", "onnx", "--output", artifact])
    scale = _draw_noise(artifact, work / "noise.npy")
    ours, theirs = work / "perfuse.png", work / "handwritten.png"
    generate = [perfuse, "generate", PROMPT, "--model", artifact, "--backend", "onnxruntime"]
    generate += ["--steps", str(STEPS), "--guidance", str(GUIDANCE), "--seed", str(SEED)]
    by_hand = [sys.executable, Path(__file__).with_name("handwritten.py"), artifact, PROMPT]
    by_hand += [work / "noise.npy", str(scale), str(STEPS), str(GUIDANCE)]
    sides = {
        "perfuse": lambda: run_process([*generate, "--output", ours]),
        "by hand": lambda: run_process([*by_hand, theirs]),
    }
    in_turns(2, sides)  # bytecode and the files' pages
    say(f"drawing, {rounds} rounds")
    found = in_turns(rounds, sides)
    difference = np.abs(_pixels(ours) - _pixels(theirs)).max()
    if difference > 1:
        sys.exit(f"The two pictures differ by {difference} of 255: they are not the same work.")
    return [
        compare(
            f"Cold start to a picture, `shapes` on onnxruntime, {STEPS} steps",
            found["perfuse"],
            found["by hand"],
            unit="s",
            against="hand-written script",
            target=1.3,
            note=f"The two pictures differ by at most {difference} of 255.",
        )
    ]


def _draw_noise(artifact: Path, file: Path) -> float:
    """Write the noise that perfuse starts from, and return the scale of the latents."""
    from perfuse import Artifact, NoiseSource

    spec = Artifact.open(artifact).spec
    shape = spec.latents.shape(1, *spec.default_size)
    np.save(file, NoiseSource(SEED).normal(shape))
    return spec.latents.scaling_factor


def _pixels(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path), dtype=np.int16)


def _importing(rounds: int) -> list[Row]:
    say("importing")

    def run(code: str) -> float:
        return run_process([sys.executable, "-c", code])

    code = {
        "nothing": "pass",
        "perfuse": "import perfuse",
        "pipeline": "from perfuse import DiffusionPipeline",
    }
    sides = {name: (lambda line=line: run(line)) for name, line in code.items()}
    in_turns(1, sides)
    found = in_turns(2 * rounds, sides)
    rows = []
    for name, target in (("perfuse", 0.15), ("pipeline", None)):
        row = compare(f"`{code[name]}`", found[name], found["nothing"], unit="s", against="`pass`")
        extra = row.ours - (row.theirs or 0.0)
        rows.append(
            Row(
                what=row.what,
                ours=row.ours,
                theirs=row.theirs,
                unit="s",
                against=row.against,
                figure=max(extra, 0.0),
                figure_unit="s",
                target=target,
                note="The figure is what the import adds to a process that does nothing.",
            )
        )
    return rows


if __name__ == "__main__":
    command(measure, __doc__)
