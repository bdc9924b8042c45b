"""Pre- and post-processing against Diffusers' VaeImageProcessor."""

import numpy as np
import pytest
from PIL import Image

from perfuse.arrays.pictures import preprocess, preprocess_mask, to_pictures, to_pil, to_unit

torch = pytest.importorskip("torch")
image_processor = pytest.importorskip("diffusers.image_processor")

PROCESSOR = image_processor.VaeImageProcessor(vae_scale_factor=8)
MASKS = image_processor.VaeImageProcessor(
    vae_scale_factor=8, do_normalize=False, do_binarize=True, do_convert_grayscale=True
)
rng = np.random.default_rng(7)


def photograph(height, width, mode="RGB"):
    """Smooth colours with some noise: both flat areas and edges for the filter."""
    y, x = np.mgrid[:height, :width] / max(height, width)
    waves = np.stack([np.sin(9 * x + y), np.cos(7 * y * x), (x > y) * 1.0, x], axis=-1)
    noisy = waves * 100 + 128 + rng.normal(0, 12, waves.shape)
    return Image.fromarray(noisy.clip(0, 255).astype(np.uint8), "RGBA").convert(mode)


@pytest.mark.parametrize("channels", [1, 3])
def test_postprocessing_is_bitwise_the_same(channels):
    decoded = rng.normal(0, 0.8, (3, channels, 64, 48)).astype(np.float32)
    # Every value whose rounding could be in doubt, and its two neighbours.
    edges = ((np.arange(0, 511, dtype=np.float32) / 510) * 2 - 1).astype(np.float32)
    around = np.concatenate([edges, np.nextafter(edges, -9), np.nextafter(edges, 9)])
    decoded.reshape(-1)[: around.size] = around
    tensor = torch.from_numpy(decoded)
    assert np.array_equal(to_unit(decoded), PROCESSOR.postprocess(tensor, output_type="np"))
    expected = PROCESSOR.postprocess(tensor, output_type="pil")
    for ours, theirs, array in zip(to_pil(decoded), expected, to_pictures(decoded), strict=True):
        assert ours.mode == theirs.mode == ("L" if channels == 1 else "RGB")
        assert np.array_equal(np.asarray(ours), np.asarray(theirs))
        assert np.array_equal(array.squeeze(), np.asarray(theirs))


SIZES = [(None, None), (64, 64), (512, 256), (8, 16), (72, None), (None, 136)]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("shape", [(64, 64), (101, 77), (40, 333)])
def test_pil_images_are_bitwise_the_same(shape, size):
    image = photograph(*shape)
    expected = PROCESSOR.preprocess(image, *size).numpy()
    got = preprocess(image, *size)
    assert got.dtype == np.float32
    assert np.array_equal(got, expected)


def test_a_list_takes_the_size_of_its_first():
    images = [photograph(64, 80), photograph(33, 50), photograph(200, 90)]
    expected = PROCESSOR.preprocess(images).numpy()
    assert expected.shape == (3, 3, 64, 80)
    assert np.array_equal(preprocess(images), expected)


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "CMYK", "1"])
def test_other_modes_are_as_if_loaded_as_rgb(mode):
    image = photograph(50, 60, "RGB").convert(mode)
    expected = PROCESSOR.preprocess(image.convert("RGB"), 64, 64).numpy()
    assert np.array_equal(preprocess(image, 64, 64), expected)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("shape", [(64, 64, 3), (101, 77, 3), (2, 40, 333, 3), (33, 65)])
def test_arrays_are_bitwise_the_same(shape, size):
    array = rng.random(shape, dtype=np.float32)
    expected = PROCESSOR.preprocess(array, *size).numpy()
    assert np.array_equal(preprocess(array, *size), expected)
    if array.ndim == 4:
        return  # Diffusers takes no list of batches any more
    both = [array, array[..., ::-1].copy()]
    assert np.array_equal(preprocess(both, *size), PROCESSOR.preprocess(both, *size).numpy())


def test_every_resize_to_the_nearest_is_the_same():
    for found in range(8, 140, 3):
        array = rng.random((found, 8, 1), dtype=np.float32)
        for asked in range(8, 240, 8):
            expected = PROCESSOR.preprocess(array, asked, 8).numpy()
            assert np.array_equal(preprocess(array, asked, 8), expected), (found, asked)


def test_an_array_with_negative_values_is_taken_as_normalised():
    array = rng.uniform(-1, 1, (16, 16, 3)).astype(np.float32)
    with pytest.warns(FutureWarning):
        expected = PROCESSOR.preprocess(array).numpy()
    assert np.array_equal(preprocess(array), expected)


def test_uint8_arrays_are_as_their_pil_images():
    image = photograph(64, 64)
    expected = PROCESSOR.preprocess(image).numpy()
    assert np.array_equal(preprocess(np.asarray(image)), expected)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "1"])
def test_masks_are_bitwise_the_same(mode, size):
    mask = photograph(101, 77, "RGB").convert(mode)
    expected = MASKS.preprocess(mask, *size).numpy()
    assert 0.05 < expected.mean() < 0.95
    assert np.array_equal(preprocess_mask(mask, *size), expected)


@pytest.mark.parametrize("shape", [(65, 33), (3, 64, 40), (2, 24, 24, 1), (24, 24, 1)])
def test_mask_arrays_are_bitwise_the_same(shape):
    mask = rng.random(shape, dtype=np.float32)
    mask.reshape(-1)[:3] = [0.5, np.nextafter(np.float32(0.5), np.float32(0)), 1.0]
    expected = MASKS.preprocess(mask.copy(), 32, 48).numpy()
    assert np.array_equal(preprocess_mask(mask, 32, 48), expected)
    expected = MASKS.preprocess(mask.copy()).numpy()
    assert np.array_equal(preprocess_mask(mask), expected)
