"""Smaller weights in a saved Core ML package, with coremltools' own compression.

Computing is in the package's precision as before: weights are looked up, or scaled, when they are
loaded.
"""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["palettize", "quantize"]

_ROUNDS = 100


def palettize(package: Path, bits: int) -> None:
    """Replace each weight by an index of so many bits into a table of its tensor's."""
    import coremltools.optimize.coreml as cto

    config = cto.OpPalettizerConfig(mode="custom", lut_function=lambda weight: table(weight, bits))
    _replace(package, cto.palettize_weights, cto.OptimizationConfig(global_config=config))


def quantize(package: Path) -> None:
    """Replace each weight by eight bits, with a scale for each output channel."""
    import coremltools.optimize.coreml as cto

    config = cto.OpLinearQuantizerConfig(mode="linear_symmetric", dtype="int8")
    _replace(package, cto.linear_quantize_weights, cto.OptimizationConfig(global_config=config))


def _replace(package: Path, compress: Any, config: Any) -> None:
    import coremltools as ct

    model = compress(ct.models.MLModel(str(package), skip_model_load=True), config)
    shutil.rmtree(package)
    shutil.move(model.package_path, package)


def table(weight: npt.NDArray[Any], bits: int) -> tuple[npt.NDArray[Any], npt.NDArray[np.uint8]]:
    """The values that stand best for a tensor's, by least squares, and each element's index.

    Lloyd's algorithm (1982) in one dimension, from the quantiles. The weights are taken to
    float16 first, of which there are few enough to count: the step between two of them is far
    smaller than that between two entries of a table.

    Returns:
        ``2**bits`` values, and an array of indices in the weight's shape.
    """
    scale = float(np.abs(weight).max()) or 1.0  # so that small weights keep their digits
    halves = (weight / scale).astype(np.float16).view(np.uint16).ravel()
    counts = np.bincount(halves, minlength=1 << 16)
    present = np.flatnonzero(counts).astype(np.uint16)
    values = present.view(np.float16).astype(np.float64)
    order = np.argsort(values)
    values, weights = values[order], counts[present[order]].astype(np.float64)
    centres = _lloyd(values, weights, 1 << bits)
    nearest = np.zeros(1 << 16, np.uint8)
    nearest[present[order]] = np.searchsorted((centres[1:] + centres[:-1]) / 2, values)
    return (centres * scale).astype(weight.dtype), nearest[halves].reshape(weight.shape)


def _lloyd(
    values: npt.NDArray[np.float64], weights: npt.NDArray[np.float64], size: int
) -> npt.NDArray[np.float64]:
    """Centres of clusters of sorted values, sorted."""
    mass = np.concatenate([[0.0], np.cumsum(weights)])
    moment = np.concatenate([[0.0], np.cumsum(weights * values)])
    # As many from each stretch as the cube root of its density: nearly the best already (Panter and
    # Dite 1951), and Lloyd's steps are short.
    density, edges = np.histogram(values, bins=2 * size, weights=weights)
    share = np.cumsum(np.cbrt(density))
    centres: npt.NDArray[np.float64] = np.interp(
        (np.arange(size) + 0.5) / size * share[-1], share, edges[1:]
    )
    for _ in range(_ROUNDS):
        cuts = np.searchsorted(values, (centres[1:] + centres[:-1]) / 2)
        cuts = np.concatenate([[0], cuts, [len(values)]])
        inside = np.diff(mass[cuts])
        means = np.diff(moment[cuts]) / np.maximum(inside, 1.0)
        moved = np.where(inside > 0, means, centres)
        if np.array_equal(moved, centres):
            break
        centres = moved
    return centres
