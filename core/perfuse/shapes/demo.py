"""Draws the same captions with the same seeds on several targets, and shows how far they differ.

``python -m perfuse.shapes.demo --output demo.png``
"""

import sys
from collections.abc import Sequence
from pathlib import Path

import click
import numpy as np

from perfuse.arrays.pictures import save_png
from perfuse.errors import PerfuseError
from perfuse.progress import Progress, reporting
from perfuse.run.pipeline import DiffusionPipeline
from perfuse.shapes.sheet import grid

CAPTIONS = (
    "a small red circle at the top left on a white background",
    "a large blue square at the center on a black background",
    "a large green triangle at the bottom right on a white background",
    "a small yellow square at the bottom left on a gray background",
)
TARGETS = ("torch:cpu", "onnxruntime:cpu", "openvino:CPU")
#: The largest difference from the reference, of 255, that still counts as the same picture.
LIMIT = 2
STEPS = 20
#: What the bundled model draws best with.
GUIDANCE = 3.0


@click.command()
@click.option("--output", type=click.Path(path_type=Path), default=Path("demo.png"))
@click.option(
    "--targets", default=",".join(TARGETS), show_default=True, help="The reference first."
)
def main(output: Path, targets: str) -> None:
    """Draw a grid, captions down and targets across, and print the same as text."""
    names = targets.split(",")
    try:
        with reporting(_report):
            drawn = [_draw(target) for target in names]
    except PerfuseError as exc:
        raise click.ClickException(str(exc)) from exc
    reference = drawn[0].astype(int)
    differences = [
        [int(abs(d[i] - reference[i]).max()) for d in drawn] for i in range(len(CAPTIONS))
    ]
    _print(names, differences)
    cells = [pictures[i] for i in range(len(CAPTIONS)) for pictures in drawn]
    labels = [_label(j, d) for row in differences for j, d in enumerate(row)]
    picture = grid(
        cells,
        len(names),
        row_captions=CAPTIONS,
        column_captions=names,
        cell_captions=labels,
        scale=3,
    )
    save_png(picture, output)
    worst = max(map(max, differences))
    same = worst <= LIMIT
    verdict = "the same pictures" if same else f"NOT the same: more than {LIMIT}"
    click.echo(f"largest difference {worst} of 255: {verdict}. See {output}")
    sys.exit(0 if same else 1)


def _report(progress: Progress) -> None:
    if progress.seconds is None:
        _say(progress.message)


def _say(message: str) -> None:
    click.echo(message, err=True)


def _draw(target: str) -> "np.ndarray[tuple[int, ...], np.dtype[np.uint8]]":
    """The captions' pictures on a target: uint8 [captions, 64, 64, 3]."""
    _say(f"Drawing on {target}")
    pipe = DiffusionPipeline.from_pretrained(backend=target)
    seeds = list(range(len(CAPTIONS)))
    images = pipe(
        list(CAPTIONS), num_inference_steps=STEPS, guidance_scale=GUIDANCE, seed=seeds
    ).images
    pipe.close()
    return np.stack([np.asarray(image) for image in images])


def _label(column: int, difference: int) -> str:
    return "reference" if column == 0 else f"differs by {difference} of 255"


def _print(targets: Sequence[str], differences: Sequence[Sequence[int]]) -> None:
    width = max(map(len, CAPTIONS))
    click.echo("  ".join([" " * width, *targets]))
    for caption, row in zip(CAPTIONS, differences, strict=True):
        cells = [_label(j, d).ljust(len(targets[j])) for j, d in enumerate(row)]
        click.echo("  ".join([caption.ljust(width), *cells]))


if __name__ == "__main__":
    main()
