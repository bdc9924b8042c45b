"""Metrics: distances between a backend's results and the truth, and between pictures.

All compute in float64. An array with NaN or infinity in it has the distance NaN, which is within no
limit; arrays of different shapes, or of no elements, are an ``InputError``. Pictures are arrays
[H, W, C] with values in [0, 1] and one, three or four channels: the fourth is how opaque it is.
"""

import math
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from perfuse.errors import InputError
from perfuse.plugins import missing_modules

__all__ = [
    "DB_CAP",
    "RATIO_CAP",
    "difference_picture",
    "flip",
    "is_constant",
    "lpips",
    "psnr_db",
    "rms",
    "rmse",
    "rmse_ratio",
    "snr_db",
    "ssim",
]

Floats = NDArray[np.float64]

#: Decibels are cut off here, on both sides: equal arrays have no finite ratio.
DB_CAP = 200.0
#: Ratios are cut off here, for the same reason.
RATIO_CAP = 1e9
#: What LPIPS's trunk needs to see its layers, and the size of its authors' patches.
_LPIPS_SIDE = 64


def rms(values: ArrayLike) -> float:
    """The root of the mean square. NaN for an array that is not finite."""
    array = _floats(values)
    return float(np.sqrt(np.mean(np.square(array)))) if np.isfinite(array).all() else math.nan


def rmse(values: ArrayLike, truth: ArrayLike) -> float:
    """The root of the mean square difference. NaN where either is not finite."""
    ours, true = _pair(values, truth)
    return rms(ours - true) if _finite(ours, true) else math.nan


def rmse_ratio(
    values: ArrayLike, truth: ArrayLike, *, reference_rmse: float, floor: float
) -> float:
    """How much worse than the reference something is, both seen from the truth.

    ``rmse(values, truth) / (reference_rmse + floor * rms(truth))``, at most ``RATIO_CAP``. The
    floor, a share of the truth's own size, keeps a reference that happens to be exact from asking
    the same of everyone.

    Args:
        values: What a backend computed.
        truth: What it should have.
        reference_rmse: The reference's own ``rmse`` at the same precision.
        floor: Relative to the truth's root mean square.

    Returns:
        0 where nothing differs from the truth; ``RATIO_CAP`` where the reference is exact, the
        floor nothing and the values are not; NaN where one of the three is not finite.
    """
    error = rmse(values, truth)
    allowed = reference_rmse + floor * rms(truth)
    if math.isnan(error) or not math.isfinite(allowed):
        return math.nan
    if error == 0:
        return 0.0
    return min(error / allowed, RATIO_CAP) if allowed > 0 else RATIO_CAP


def snr_db(values: ArrayLike, truth: ArrayLike) -> float:
    """The signal-to-noise ratio, ``10 log10(mean(truth²) / mean((values - truth)²))``.

    Returns:
        Decibels in [-200, 200]: 200 for equal arrays, also if both are zero; -200 for a truth of
        zeros that is missed; NaN where either is not finite.
    """
    noise, signal = rmse(values, truth), rms(truth)
    if math.isnan(noise) or math.isnan(signal):
        return math.nan
    return _decibels(signal, noise)


def psnr_db(picture: ArrayLike, reference: ArrayLike) -> float:
    """The peak signal-to-noise ratio of a picture, ``10 log10(1 / mean((picture - reference)²))``.

    Returns:
        Decibels, at most 200, which equal pictures have; NaN where either is not finite.
    """
    from skimage.metrics import peak_signal_noise_ratio

    ours, true = _pictures(picture, reference)
    if not _finite(ours, true):
        return math.nan
    if np.array_equal(ours, true):
        return DB_CAP
    return min(float(peak_signal_noise_ratio(true, ours, data_range=1)), DB_CAP)


def ssim(picture: ArrayLike, reference: ArrayLike) -> float:
    """The structural similarity, the mean over the picture and its channels.

    With the settings of Wang, Bovik, Sheikh and Simoncelli, "Image quality assessment: from error
    visibility to structural similarity", IEEE TIP 13(4), 2004: a Gaussian window of 11 pixels and
    sigma 1.5, population covariance, K1 0.01, K2 0.03. A border of half a window is left out; of a
    picture smaller than the window, less is.

    Returns:
        A number in [-1, 1]; 1 for equal pictures, also of one colour; NaN where either is not
        finite.
    """
    from skimage.metrics import structural_similarity

    ours, true = _pictures(picture, reference)
    if not _finite(ours, true):
        return math.nan
    side = min(ours.shape[:2])
    window = min(11, side if side % 2 == 1 else side - 1)
    similarity = structural_similarity(
        true,
        ours,
        win_size=window,
        data_range=1,
        channel_axis=-1,
        gaussian_weights=True,
        sigma=1.5,
        use_sample_covariance=False,
    )
    return float(similarity)


def flip(picture: ArrayLike, reference: ArrayLike) -> tuple[float, Floats]:
    """The difference that a person sees who flips between two pictures: the mean, and each pixel's.

    Andersson, Nilsson, Akenine-Möller, Oskarsson, Åström and Fairchild, "FLIP: A difference
    evaluator for alternating images", PACMCGIT 3(2), 2020, in NVIDIA's implementation, at its own
    67 pixels per degree (a screen 3840 pixels and 0.7 m wide, seen from 0.7 m). Values are taken
    as sRGB; those outside [0, 1] are shown as the nearest that a screen has.

    Returns:
        The mean error, in [0, 1], and the error of each pixel [H, W]. A pixel that is not finite
        has the error 1, and makes the mean NaN.
    """
    ours, true = _pictures(picture, reference)
    bad = _bad_pixels(ours, true)
    errors = _flip(ours, true, colours=False)[..., 0]
    errors[bad] = 1
    return (math.nan if bad.any() else float(errors.mean())), errors


def difference_picture(picture: ArrayLike, reference: ArrayLike) -> NDArray[np.uint8]:
    """FLIP's error of each pixel as a picture [H, W, 3] to look at: black for none, light for all."""
    ours, true = _pictures(picture, reference)
    colours = _flip(ours, true, colours=True)
    colours[_bad_pixels(ours, true)] = 1
    return np.rint(np.clip(colours, 0, 1) * 255).astype(np.uint8)


def lpips(picture: ArrayLike, reference: ArrayLike) -> tuple[float | None, str]:
    """The learned perceptual distance, where its weights are on this machine. It downloads nothing.

    Zhang, Isola, Efros, Shechtman and Wang, "The unreasonable effectiveness of deep features as a
    perceptual metric", CVPR 2018, version 0.1 on AlexNet. The ``lpips`` package brings the weights
    of its own layers; those of AlexNet are torchvision's, looked for where ``torch.hub`` keeps
    them. Pictures smaller than 64 pixels are enlarged by whole pixels: the network would see
    nothing of them.

    Returns:
        The distance (0 for equal pictures) and "", or ``None`` and what is missing. NaN where
        either is not finite.
    """
    ours, true = _pictures(picture, reference)
    missing = _lpips_missing()
    if missing != "":
        return None, missing
    if not _finite(ours, true):
        return math.nan, ""
    import torch
    from lpips import LPIPS

    network = LPIPS(net="alex", version="0.1", verbose=False).eval()
    with torch.no_grad():
        distance = network(_lpips_input(ours), _lpips_input(true), normalize=True)
    return float(distance), ""


def is_constant(picture: ArrayLike) -> bool:
    """Whether a picture [H, W, C] is of one colour once it is written with 8 bits a channel.

    A picture with NaN or infinity in it is not.
    """
    array = _floats(picture)
    if array.ndim != 3:
        raise _not_pictures(array, array)
    if not np.isfinite(array).all():
        return False
    levels = np.rint(np.clip(array, 0, 1) * 255)
    return bool((levels == levels[:1, :1]).all())


def _floats(values: ArrayLike) -> Floats:
    array = np.asarray(values, np.float64)
    if array.size == 0:
        raise InputError(f"An array to measure has the shape {array.shape}; it needs elements.")
    return array


def _pair(values: ArrayLike, truth: ArrayLike) -> tuple[Floats, Floats]:
    ours, true = _floats(values), _floats(truth)
    if ours.shape != true.shape:
        raise InputError(
            f"Arrays of the shapes {ours.shape} and {true.shape} were to be compared; "
            "only those of the same shape can be."
        )
    return ours, true


def _pictures(picture: ArrayLike, reference: ArrayLike) -> tuple[Floats, Floats]:
    ours, true = _pair(picture, reference)
    if ours.ndim != 3 or ours.shape[2] not in (1, 3, 4):
        raise _not_pictures(ours, true)
    return ours, true


def _not_pictures(ours: Floats, true: Floats) -> InputError:
    return InputError(
        f"Pictures of the shapes {ours.shape} and {true.shape} were to be measured; "
        "give [height, width, channels] with 1, 3 or 4 channels."
    )


def _finite(*arrays: Floats) -> bool:
    return all(bool(np.isfinite(array).all()) for array in arrays)


def _bad_pixels(ours: Floats, true: Floats) -> NDArray[np.bool_]:
    """Where a pixel [H, W] of either picture is not finite."""
    return np.asarray(~(np.isfinite(ours) & np.isfinite(true)).all(axis=2))


def _decibels(signal: float, noise: float) -> float:
    if noise == 0:
        return DB_CAP
    if signal == 0:
        return -DB_CAP
    return min(max(20 * math.log10(signal / noise), -DB_CAP), DB_CAP)


def _flip(ours: Floats, true: Floats, *, colours: bool) -> Floats:
    """FLIP's errors [H, W, 1], or their colours [H, W, 3]."""
    import flip_evaluator

    # It computes on three channels of float32 in one block of memory, and checks for none of it.
    shown = [
        np.ascontiguousarray(_in_colours(np.clip(np.nan_to_num(array), 0, 1)), np.float32)
        for array in (true, ours)
    ]
    errors, _, _ = flip_evaluator.evaluate(*shown, "LDR", applyMagma=colours)
    return np.array(errors, np.float64)


def _in_colours(picture: Floats) -> Floats:
    """A picture [H, W, C] in [0, 1] as it looks before white, [H, W, 3]."""
    if picture.shape[2] == 4:
        opaque = picture[..., 3:]
        return picture[..., :3] * opaque + (1 - opaque)
    return np.broadcast_to(picture, (*picture.shape[:2], 3))


def _lpips_missing() -> str:
    """What LPIPS would have to download or install; nothing where it is all there."""
    if missing := missing_modules(("torch", "torchvision", "lpips")):
        return f"{missing[0]} is not installed"
    import torch

    try:
        from torchvision.models import AlexNet_Weights
    except Exception as exc:  # noqa: BLE001 - one built for another torch raises what it likes
        return f"torchvision cannot be imported: {exc}"
    name = AlexNet_Weights.IMAGENET1K_V1.url.rpartition("/")[2]
    weights = Path(torch.hub.get_dir()) / "checkpoints" / name
    return "" if weights.is_file() else f"{weights} is not there; LPIPS needs its weights"


def _lpips_input(picture: Floats) -> Any:
    """A picture as a float32 tensor [1, 3, H, W] in [0, 1], large enough for the network."""
    import torch

    times = -(-_LPIPS_SIDE // min(picture.shape[:2]))
    enlarged = np.repeat(np.repeat(np.clip(picture, 0, 1), times, axis=0), times, axis=1)
    rgb = _in_colours(enlarged)
    return torch.from_numpy(np.ascontiguousarray(rgb.transpose(2, 0, 1)[None], np.float32))
