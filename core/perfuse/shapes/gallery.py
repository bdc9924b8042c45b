"""Draws the pictures of docs/pictures.md with the bundled model: `python -m perfuse.shapes.gallery`."""

from pathlib import Path
from typing import Any

import click
from PIL import Image

from perfuse.arrays.pictures import save_png
from perfuse.run.pipeline import DiffusionPipeline
from perfuse.shapes.sheet import grid

START = "a large red circle at the center on a white background"
ANEW = "a large blue square at the center on a white background"
BESIDE = "a small green triangle at the bottom right on a white background"
STRENGTHS = (0.3, 0.5, 0.7, 0.9)
#: The part that is masked: left, top, right, bottom.
BOX = (36, 36, 64, 64)


@click.command()
@click.option("--output", type=click.Path(path_type=Path), default=Path("docs/pictures.png"))
@click.option("--backend", default="torch:cpu", show_default=True)
def main(output: Path, backend: str) -> None:
    """Draw image to image and inpainting at several strengths, and guidance at several scales."""
    pipe = DiffusionPipeline.from_pretrained(backend=backend)
    given: dict[str, Any] = {"num_inference_steps": 20, "guidance_scale": 3.0, "seed": 3}

    def drawn(prompt: str, **more: Any) -> Image.Image:
        image: Image.Image = pipe(prompt, **{**given, **more}).images[0]
        return image

    start = drawn(START)
    small = drawn("a small red circle at the top left on a white background")
    mask = Image.new("L", start.size, 0)
    mask.paste(255, BOX)
    rows = {
        f"image to image: {ANEW}": [
            start,
            *(drawn(ANEW, image=start, strength=strength) for strength in STRENGTHS),
        ],
        f"inpainting the lower right: {BESIDE}": [
            small,
            *(drawn(BESIDE, image=small, mask_image=mask, strength=one) for one in STRENGTHS),
        ],
    }
    picture = grid(
        [image for row in rows.values() for image in row],
        1 + len(STRENGTHS),
        row_captions=list(rows),
        column_captions=["to start from", *(f"strength {one}" for one in STRENGTHS)],
        scale=2,
    )
    save_png(picture, output, metadata=False)
    click.echo(output)


if __name__ == "__main__":
    main()
