"""Metrics: by hand, where the answer is known, and what degenerate inputs give."""

import math
import shutil
from pathlib import Path

import numpy as np
import pytest

from perfuse.errors import InputError
from perfuse_conformance.judge import metrics

ARRAYS = [metrics.rmse, metrics.snr_db]
PICTURES = [metrics.psnr_db, metrics.ssim, lambda a, b: metrics.flip(a, b)[0]]


def picture(seed=0, size=(24, 16), channels=3):
    """Smooth random colours: what neighbours share, SSIM and FLIP see."""
    rng = np.random.default_rng(seed)
    coarse = rng.random((size[0] // 4, size[1] // 4, channels))
    return np.kron(coarse, np.ones((4, 4, 1)))


# --- arrays -----------------------------------------------------------------------------------


def test_arrays_by_hand():
    truth, values = np.array([[3.0, 4.0], [0.0, 0.0]]), np.array([[3.0, 4.0], [0.0, 0.5]])
    assert metrics.rms(truth) == 2.5
    assert metrics.rmse(values, truth) == 0.25
    assert metrics.snr_db(values, truth) == pytest.approx(20)


def test_one_percent_of_scale_is_forty_decibels():
    truth = np.random.default_rng(0).standard_normal((2, 4, 8, 8))
    assert metrics.snr_db(1.01 * truth, truth) == pytest.approx(40)
    assert metrics.snr_db(1.01e-30 * truth, 1e-30 * truth) == pytest.approx(40)


def test_float32_and_float16_are_not_computed_in():
    truth = np.full(4096, 1e4, np.float16)
    assert metrics.rms(truth) == 1e4  # its square, and the sum, are beyond float16
    values = truth.astype(np.float64) + 1e-9
    assert metrics.rmse(values, truth.astype(np.float64)) == pytest.approx(1e-9, rel=1e-2)


def test_ratio_to_the_reference():
    truth, values = np.full(4, 2.0), np.full(4, 3.0)
    assert metrics.rmse_ratio(values, truth, reference_rmse=0.5, floor=0) == 2
    assert metrics.rmse_ratio(values, truth, reference_rmse=0.5, floor=0.75) == 0.5
    assert metrics.rmse_ratio(values, truth, reference_rmse=0, floor=0) == metrics.RATIO_CAP
    assert metrics.rmse_ratio(values, truth, reference_rmse=0, floor=0.25) == 2
    assert metrics.rmse_ratio(truth, truth, reference_rmse=0, floor=0) == 0
    assert metrics.rmse_ratio(values, 0 * truth, reference_rmse=0, floor=1) == metrics.RATIO_CAP


def test_equal_zero_and_missed():
    zeros, ones = np.zeros((2, 3)), np.ones((2, 3))
    assert metrics.snr_db(ones, ones) == metrics.snr_db(zeros, zeros) == 200
    assert metrics.snr_db(ones, zeros) == -200
    assert metrics.snr_db(zeros, ones) == 0
    assert metrics.snr_db(1 + 1e-15 * ones, ones) == 200
    assert metrics.rms(zeros) == metrics.rmse(ones, ones) == 0


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("metric", ARRAYS)
def test_what_is_not_finite_is_nan_whichever_side(metric, bad):
    good = np.ones((2, 3))
    values = good.copy()
    values[1, 2] = bad
    assert math.isnan(metric(values, good))
    assert math.isnan(metric(good, values))
    assert math.isnan(metric(values, values))


def test_a_ratio_of_what_is_not_finite_is_nan():
    good, bad = np.ones(3), np.array([1, np.nan, 1])
    assert math.isnan(metrics.rmse_ratio(bad, good, reference_rmse=1, floor=1e-6))
    assert math.isnan(metrics.rmse_ratio(good, bad, reference_rmse=1, floor=1e-6))
    for error in (math.nan, math.inf):
        assert math.isnan(metrics.rmse_ratio(good, good, reference_rmse=error, floor=1e-6))


@pytest.mark.parametrize("metric", ARRAYS + PICTURES)
def test_other_shapes_are_refused_not_broadcast(metric):
    with pytest.raises(InputError, match=r"\(24, 16, 3\) and \(1, 16, 3\)"):
        metric(np.ones((24, 16, 3)), np.ones((1, 16, 3)))
    with pytest.raises(InputError, match="needs elements"):
        metric(np.ones((0, 16, 3)), np.ones((0, 16, 3)))


# --- pictures ---------------------------------------------------------------------------------


def test_psnr_by_hand():
    reference = picture() * 0.9
    assert metrics.psnr_db(reference + 0.1, reference) == pytest.approx(20)
    assert metrics.psnr_db(reference, reference) == 200


def test_ssim_is_the_paper_s():
    # The one pixel of an 11 x 11 picture with a whole window around it.
    rng = np.random.default_rng(0)
    reference, ours = rng.random((11, 11, 1)), rng.random((11, 11, 1))
    steps = np.exp(-(np.arange(-5, 6) ** 2) / (2 * 1.5**2))
    w = np.outer(steps, steps) / np.outer(steps, steps).sum()
    x, y = reference[..., 0], ours[..., 0]
    mx, my = (w * x).sum(), (w * y).sum()
    vx, vy = (w * (x - mx) ** 2).sum(), (w * (y - my) ** 2).sum()
    vxy = (w * (x - mx) * (y - my)).sum()
    c1, c2 = 0.01**2, 0.03**2
    expected = ((2 * mx * my + c1) * (2 * vxy + c2)) / ((mx**2 + my**2 + c1) * (vx + vy + c2))
    assert metrics.ssim(ours, reference) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("size", [(16, 16), (8, 8), (64, 48), (7, 30)])
def test_pictures_of_any_size_get_worse_with_noise(size):
    rng = np.random.default_rng(0)
    reference = rng.random((*size, 3))
    noise = rng.standard_normal(reference.shape)
    slight, strong = (np.clip(reference + s * noise, 0, 1) for s in (0.01, 0.1))
    assert 1 > metrics.ssim(slight, reference) > metrics.ssim(strong, reference)
    assert 0 < metrics.flip(slight, reference)[0] < metrics.flip(strong, reference)[0] < 1
    assert metrics.psnr_db(slight, reference) > metrics.psnr_db(strong, reference) + 15


def test_pictures_of_one_colour_are_compared():
    grey, black = np.full((16, 16, 3), 0.5), np.zeros((16, 16, 3))
    assert metrics.ssim(grey, grey) == metrics.ssim(black, black) == 1
    assert metrics.flip(grey, grey)[0] == 0
    assert metrics.ssim(grey, black) < 0.01
    assert metrics.flip(np.ones_like(black), black)[0] > 0.9


def test_flip_says_where():
    reference = np.full((24, 16, 3), 0.5)
    ours = reference.copy()
    ours[20, 3] = [1, 0, 0]
    mean, errors = metrics.flip(ours, reference)
    assert errors.shape == (24, 16)
    assert np.unravel_index(errors.argmax(), errors.shape) == (20, 3)
    assert mean == pytest.approx(errors.mean())
    assert errors[0, 15] == 0
    shown = metrics.difference_picture(ours, reference)
    assert shown.shape == (24, 16, 3)
    assert shown.dtype == np.uint8
    assert shown[20, 3].sum() == shown.sum(axis=2).max() > 100
    assert shown[0, 15].sum() < 10


def test_swapped_channels_are_seen_by_all():
    reference = picture()
    swapped = reference[..., ::-1]
    assert metrics.psnr_db(swapped, reference) < 15
    assert metrics.ssim(swapped, reference) < 0.7
    assert metrics.flip(swapped, reference)[0] > 0.2


def test_grey_pictures_and_other_layouts():
    reference = picture(channels=1)
    assert metrics.flip(reference, reference)[0] == 0
    rgb = metrics.flip(picture(1, channels=1).repeat(3, axis=2), reference.repeat(3, axis=2))
    assert metrics.flip(picture(1, channels=1), reference)[0] == rgb[0]
    # A view with other strides holds the same picture.
    other = picture(1)
    turned = np.ascontiguousarray(other.transpose(1, 0, 2)).transpose(1, 0, 2)
    assert metrics.flip(turned, picture())[0] == metrics.flip(other, picture())[0]


def test_a_pixel_that_is_not_finite_is_all_wrong():
    reference = picture()
    ours = reference.copy()
    ours[5, 6, 1] = np.nan
    for metric in PICTURES:
        assert math.isnan(metric(ours, reference))
        assert math.isnan(metric(reference, ours))
    mean, errors = metrics.flip(ours, reference)
    assert math.isnan(mean)
    assert errors[5, 6] == 1
    assert metrics.difference_picture(ours, reference)[5, 6].tolist() == [255, 255, 255]


@pytest.mark.parametrize("shape", [(16, 16), (16, 16, 2), (1, 3, 16, 16)])
def test_what_is_no_picture_is_refused(shape):
    for metric in (*PICTURES, metrics.difference_picture, metrics.lpips):
        with pytest.raises(InputError, match="height, width, channels"):
            metric(np.ones(shape), np.ones(shape))


def test_one_colour():
    assert metrics.is_constant(np.zeros((16, 16, 3)))
    assert metrics.is_constant(np.broadcast_to([0.2, 0.4, 0.9], (16, 16, 3)))
    assert metrics.is_constant(np.full((16, 16, 3), 0.4) + 1e-4 * picture(size=(16, 16)))
    assert metrics.is_constant(2 + picture())  # white on a screen
    assert not metrics.is_constant(picture())
    spot = np.zeros((16, 16, 3))
    spot[3, 4, 2] = 1 / 255
    assert not metrics.is_constant(spot)
    spot[3, 4, 2] = np.nan
    assert not metrics.is_constant(spot)
    with pytest.raises(InputError, match="height, width, channels"):
        metrics.is_constant(np.zeros((3, 16)))


def test_lpips_says_what_is_missing(monkeypatch, tmp_path):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    value, reason = metrics.lpips(picture(), picture(1))
    assert value is None
    assert any(words in reason for words in ("not installed", "be imported", str(tmp_path)))
    assert not list(tmp_path.rglob("*"))  # it has downloaded nothing


def test_lpips_where_its_weights_are(monkeypatch, tmp_path):
    torch = pytest.importorskip("torch", reason="torch is not installed")
    try:
        import lpips  # noqa: F401
        from torchvision import models
    except (ImportError, RuntimeError) as exc:
        pytest.skip(f"lpips and a torchvision built for the installed torch are needed: {exc}")
    # Trained weights are not needed to see that the pictures reach the network as they should.
    folder = tmp_path / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    name = Path(models.AlexNet_Weights.IMAGENET1K_V1.url).name
    torch.manual_seed(0)
    torch.save(models.alexnet(weights=None).state_dict(), folder / name)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    assert metrics.lpips(picture(), picture()) == (0, "")
    near, far = (metrics.lpips(picture() * s, picture())[0] for s in (0.98, 0.5))
    assert 0 < near < far
    small = metrics.lpips(picture(1, size=(16, 16)), picture(size=(16, 16)))[0]
    large = [
        p.repeat(4, axis=0).repeat(4, axis=1) for p in (picture(1, (16, 16)), picture(0, (16, 16)))
    ]
    assert small == pytest.approx(metrics.lpips(*large)[0], rel=1e-4)
    shutil.rmtree(folder)
    assert metrics.lpips(picture(), picture())[0] is None
