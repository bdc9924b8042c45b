"""Saves a run's pictures with its results: the worst of each draw, and its difference image."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from perfuse.arrays import save_png
from perfuse_conformance.judge import metrics
from perfuse_conformance.judge.results import Run
from perfuse_conformance.runner.picture_cases import Drawn

__all__ = ["save_drawn"]


def save_drawn(run: Run, drawn: Sequence[Drawn], folder: Path) -> Run:
    """Write PNG files into ``folder/pictures`` and return the run with their names in it."""
    pictures = folder / "pictures"
    pictures.mkdir(parents=True, exist_ok=True)
    names = {one.case: _save(one, pictures) for one in drawn}
    return replace(
        run,
        results=tuple(
            replace(result, pictures=names[result.id]) if result.id in names else result
            for result in run.results
        ),
    )


def _save(drawn: Drawn, folder: Path) -> dict[str, str]:
    finite = np.isfinite(drawn.backend).all()
    errors = [
        metrics.psnr_db(ours, right) if finite and ours.shape == right.shape else -np.inf
        for ours, right in zip(drawn.backend, drawn.reference, strict=False)
    ]
    worst = int(np.argmin(errors))
    ours, right = drawn.backend[worst], drawn.reference[worst]
    shown = {"reference": _bytes(right), "backend": _bytes(ours)}
    if ours.shape == right.shape:
        shown["difference"] = metrics.difference_picture(ours, right)
    names = {}
    for role, array in shown.items():
        name = f"{drawn.case.replace('/', '-')}-{role}.png"
        save_png(_picture(array), folder / name)
        names[role] = f"pictures/{name}"
    return names


def _bytes(picture: Any) -> Any:
    """[H, W, C] in [0, 1] as bytes; non-finite values are black."""
    return np.round(np.clip(np.nan_to_num(picture), 0, 1) * 255).astype(np.uint8)


def _picture(array: Any) -> Any:
    from PIL import Image

    return Image.fromarray(array[..., 0] if array.shape[-1] == 1 else array)
