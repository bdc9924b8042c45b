"""Draws pictures of the documentation with the bundled model: `python -m perfuse.shapes.gallery`."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
from PIL import Image

from perfuse.arrays.pictures import save_png
from perfuse.run.pipeline import DiffusionPipeline
from perfuse.shapes import BUNDLED
from perfuse.shapes.sheet import grid

START = "a large red circle at the center on a white background"
ANEW = "a large blue square at the center on a white background"
BESIDE = "a small green triangle at the bottom right on a white background"
STRENGTHS = (0.3, 0.5, 0.7, 0.9)
#: The part that is masked: left, top, right, bottom.
BOX = (36, 36, 64, 64)

#: Two prompts: one that leaves much open, and one that much guidance overdoes.
OPEN, PLAIN = "a shape", "a large cross on a gray background"
LAYERS = "down_blocks+up_blocks"
#: Rows by prompt and caption: guiders as ``--guider`` names them, by the captions of the pictures.
GUIDERS: dict[tuple[str, str], dict[str, str]] = {
    (OPEN, "classifier-free guidance"): {
        f"scale {scale}": f"classifier-free:guidance_scale={scale}" for scale in (1, 2, 4, 8, 16)
    },
    (OPEN, "away from a worse version of the denoiser"): {
        "none": "none",
        "pag": f"pag:guidance_scale=1,pag_scale=4,pag_applied_layers={LAYERS}",
        "seg": f"seg:guidance_scale=1,seg_guidance_scale=6,seg_guidance_layers={LAYERS}",
        "slg": "slg:guidance_scale=1,skip_layer_guidance_scale=4,skip_layer_guidance_start=0,"
        f"skip_layer_guidance_stop=1,skip_layer_guidance_layers={LAYERS}",
        "auto-guidance": "auto-guidance:guidance_scale=3",
    },
    (PLAIN, "much of it: scale 16"): {
        "classifier-free": "classifier-free:guidance_scale=16",
        "apg": "apg:guidance_scale=16,eta=0",
        "cfg-zero-star": "cfg-zero-star:guidance_scale=16",
        "tcfg": "tcfg:guidance_scale=16",
        "mambo-g": "mambo-g:guidance_scale=16",
    },
    (PLAIN, "classifier-free with scale 16, at some steps"): {
        f"{start} to {stop}": f"classifier-free:guidance_scale=16,start={start},stop={stop}"
        for start, stop in ((0, 0.25), (0.25, 0.75), (0.5, 1), (0.75, 1), (0, 1))
    },
}
NEGATIVES = {
    "a circle on a white background": ("", "blue", "green", "red blue green"),
    "a red shape on a white background": ("", "cross", "cross square", "cross triangle"),
}
CAPTIONS = (
    "a small red circle at the top left on a white background",
    "a large cyan cross at the center on a black background",
    "a purple triangle at the bottom right",
    "a yellow square above a blue circle",
    "a shape on a gray background",
)

Draw = Callable[..., Image.Image]


@click.command()
@click.option("--output", type=click.Path(path_type=Path), default=Path("docs"), help="A folder.")
@click.option("--backend", default="torch:cpu", show_default=True)
@click.option("--sheet", "names", multiple=True, help="Of these alone.")
def main(output: Path, backend: str, names: tuple[str, ...]) -> None:
    """Draw image to image and inpainting, guiders, negative prompts, and captions: a sheet each."""
    for name in names or SHEETS:
        model, sheet = SHEETS[name]
        path = output / f"{name}.png"
        save_png(sheet(_drawing(model, backend)), path, metadata=False)
        click.echo(path)


def _drawing(model: str, backend: str) -> Draw:
    """What draws a prompt with a bundled model."""
    pipe = DiffusionPipeline.from_pretrained(model, backend=backend)
    given: dict[str, Any] = {**BUNDLED[model].call(), "seed": 3}

    def drawn(prompt: str, **more: Any) -> Image.Image:
        image: Image.Image = pipe(prompt, **{**given, **more}).images[0]
        return image

    return drawn


def strengths(drawn: Draw) -> Image.Image:
    """Image to image and inpainting at several strengths."""
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
    return grid(
        [image for row in rows.values() for image in row],
        1 + len(STRENGTHS),
        row_captions=list(rows),
        column_captions=["to start from", *(f"strength {one}" for one in STRENGTHS)],
        scale=2,
    )


def guiders(drawn: Draw) -> Image.Image:
    """Two prompts by each guider."""
    cells = [
        (prompt, caption, text)
        for (prompt, _), row in GUIDERS.items()
        for caption, text in row.items()
    ]
    return grid(
        [drawn(p, guider=text, num_inference_steps=8, seed=1) for p, _, text in cells],
        5,
        row_captions=[f"“{prompt}”: {how}" for prompt, how in GUIDERS],
        cell_captions=[caption for _, caption, _ in cells],
        scale=2,
    )


def negatives(drawn: Draw) -> Image.Image:
    """Prompts that leave something open, with negative prompts that narrow it."""
    cells = [(prompt, words) for prompt, several in NEGATIVES.items() for words in several]
    return grid(
        [drawn(prompt, negative_prompt=words) for prompt, words in cells],
        4,
        row_captions=[f"“{prompt}”" for prompt in NEGATIVES],
        cell_captions=[f"not “{words}”" if words else "no negative prompt" for _, words in cells],
        scale=2,
    )


def captions(drawn: Draw) -> Image.Image:
    """Captions, each by three seeds."""
    return grid(
        [drawn(caption, seed=seed) for seed in range(3) for caption in CAPTIONS],
        len(CAPTIONS),
        column_captions=CAPTIONS,
        scale=2,
    )


#: Sheets by their files' names, with the model that draws them.
SHEETS: dict[str, tuple[str, Callable[[Draw], Image.Image]]] = {
    "pictures": ("shapes", strengths),
    "guidance": ("shapes", guiders),
    "negative-prompts": ("shapes", negatives),
    "shapes-flow": ("shapes-flow", captions),
}


if __name__ == "__main__":
    main()
