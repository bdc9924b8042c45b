"""The same functions on numpy arrays and torch tensors."""

import subprocess
import sys
from typing import Any

import numpy as np
import pytest

from perfuse import arrays

X = np.arange(24, dtype=np.float32).reshape(2, 3, 4)


@pytest.fixture(params=["numpy", "torch"])
def x(request: pytest.FixtureRequest) -> Any:
    if request.param == "numpy":
        return X
    return pytest.importorskip("torch").from_numpy(X)


def test_is_torch(x: Any) -> None:
    assert arrays.is_torch(x) == (not isinstance(x, np.ndarray))


def test_torch_is_not_imported_to_ask() -> None:
    program = (
        "import sys, numpy, perfuse.arrays as a\n"
        "assert not a.is_torch(numpy.zeros(1)) and 'torch' not in sys.modules\n"
        "a.to_numpy(a.concatenate([a.place(numpy.ones(2), None)] * 2))\n"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def test_concatenate_and_join(x: Any) -> None:
    stacked, joined = arrays.concatenate([x, x]), arrays.join_features([x, x])
    assert type(stacked) is type(joined) is type(x)
    assert (arrays.to_numpy(stacked) == np.concatenate([X, X])).all()
    assert (arrays.to_numpy(joined) == np.concatenate([X, X], axis=-1)).all()


def test_std_is_of_each_item_and_unbiased(x: Any) -> None:
    found = arrays.std(x)
    assert tuple(found.shape) == (2, 1, 1)
    assert arrays.to_numpy(found).ravel() == pytest.approx([X[i].std(ddof=1) for i in (0, 1)])


def test_zeros_like(x: Any) -> None:
    zeros = arrays.zeros_like(x)
    assert type(zeros) is type(x)
    assert (arrays.to_numpy(zeros) == 0).all()
    assert tuple(zeros.shape) == X.shape


def test_zeros_of_what_is_not_finite(x: Any) -> None:
    """Nothing times zero is NaN; zeros are zeros."""
    assert (arrays.to_numpy(arrays.zeros_like(x + float("inf"))) == 0).all()


def test_to_numpy() -> None:
    torch = pytest.importorskip("torch")
    half = arrays.to_numpy(torch.ones(2, dtype=torch.bfloat16, requires_grad=True))
    assert half.dtype == np.float32
    assert arrays.to_numpy(np.ones(2)).dtype == np.float32
    assert arrays.to_numpy(torch.ones(2, dtype=torch.int64)).dtype == np.int64
    assert arrays.to_numpy(X) is X


def test_place(x: Any) -> None:
    torch = pytest.importorskip("torch")
    assert isinstance(arrays.place(x, None), np.ndarray)
    placed = arrays.place(x, "cpu")
    assert isinstance(placed, torch.Tensor)
    assert (placed.numpy() == X).all()
    turned = arrays.place(X.transpose(2, 1, 0), "cpu")
    assert tuple(turned.shape) == (4, 3, 2)
