"""Tables of values for weights."""

import numpy as np
import pytest

from perfuse_exporters.coreml.compress import table


@pytest.mark.parametrize("bits", [1, 2, 4, 6, 8])
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_a_table_is_close_to_the_best_for_a_normal_distribution(bits: int, dtype: type) -> None:
    weight = (np.random.default_rng(0).standard_normal((400, 300)) * 1e-3).astype(dtype)
    values, indices = table(weight, bits)
    assert values.shape == (2**bits,) and values.dtype == dtype
    assert indices.shape == weight.shape and indices.dtype == np.uint8
    noise = np.mean((values[indices].astype(np.float64) - weight) ** 2) / np.var(weight)
    # The least there can be: Max, "Quantizing for minimum distortion" (1960), table I, to 5 bits;
    # from there on Panter and Dite's 2.7207 / 4**bits. Measured 1.04 of it at most.
    least = {1: 0.3634, 2: 0.1175, 4: 0.009497, 6: 2.7207 / 4**6, 8: 2.7207 / 4**8}[bits]
    assert noise < 1.1 * least


def test_few_values_are_kept_as_they_are() -> None:
    weight = np.array([[0.5, -0.25], [0.0, 0.5]], np.float32)
    values, indices = table(weight, 2)
    assert np.array_equal(values[indices], weight)


def test_zeros_have_a_table_too() -> None:
    values, indices = table(np.zeros((3, 3), np.float32), 1)
    assert not values[indices].any()
