"""The device: a memory of its own, a queue, and no way around either."""

from typing import Any

import numpy as np
import pytest
import torch
from perfuse.errors import ExecutionError

from perfuse_openreg.driver import Accelerator, Buffer, accelerator
from perfuse_openreg.hardware import HARDWARE

X = np.arange(6, dtype=np.float32).reshape(2, 3)
SHAPE = ("float32", (2, 3))


@pytest.fixture
def device() -> Accelerator:
    return Accelerator(HARDWARE[0], 1000)


def double(device: Accelerator, x: Any) -> Buffer:
    (made,) = device.launch("add.Tensor", [x, x], {}, [SHAPE])
    assert made is not None
    return made


def test_there_and_back(device: Accelerator) -> None:
    x = device.copy_in(X, "float32")
    y = double(device, x)
    device.synchronize()
    found = device.copy_out(y)
    assert (found == 2 * X).all()
    found += 1  # the host's own
    assert (device.copy_out(y) == 2 * X).all()


def test_what_is_copied_in_is_a_copy(device: Accelerator) -> None:
    array = X.copy()
    x = device.copy_in(array, "float32")
    array += 1
    assert (device.copy_out(x) == X).all()


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_memory_holds_what_its_type_can(device: Accelerator, dtype: str) -> None:
    array = np.array([1 / 3, 1000.4], np.float32)
    found = device.copy_out(device.copy_in(array, dtype))
    assert found.dtype == np.float32
    assert (found == torch.tensor(array).to(getattr(torch, dtype)).float().numpy()).all()
    assert device.memory.used == 4


def test_the_host_cannot_look_into_device_memory(device: Accelerator) -> None:
    x: Any = device.copy_in(X, "float32")
    with pytest.raises(ExecutionError, match="device memory; copy it out"):
        np.asarray(x)
    with pytest.raises(ExecutionError, match="device memory; copy it out"):
        np.add(X, x)
    with pytest.raises(TypeError):
        float(x)
    with pytest.raises(TypeError):
        x[0]


@pytest.mark.parametrize("array", [X, torch.from_numpy(X)])
def test_a_kernel_refuses_the_host_s_memory(device: Accelerator, array: Any) -> None:
    with pytest.raises(ExecutionError, match=r"host array of shape \(2, 3\).*Copy it in"):
        double(device, array)
    with pytest.raises(ExecutionError, match="host array"):
        device.launch("cat.default", [[array]], {}, [SHAPE])


def test_a_kernel_refuses_another_device_s_memory(device: Accelerator) -> None:
    there = Accelerator(HARDWARE[1], 1000).copy_in(X, "float32")
    with pytest.raises(ExecutionError, match="of openreg:1 was given to openreg:0"):
        double(device, there)


def test_freed_memory_is_gone(device: Accelerator) -> None:
    x = device.copy_in(X, "float32")
    y = double(device, x)
    device.free(x)
    for use in (device.copy_out, device.free, lambda buffer: double(device, buffer)):
        with pytest.raises(ExecutionError, match="was freed"):
            use(x)
    device.synchronize()  # what was launched before it was freed has had it
    assert (device.copy_out(y) == 2 * X).all()
    device.free(y)
    device.synchronize()
    assert device.memory.used == 0


def test_nothing_runs_before_it_is_waited_for(device: Accelerator) -> None:
    x = device.copy_in(X, "float32")
    y = double(device, x)
    assert device.memory.used == X.nbytes
    for buffer in (x, y):
        with pytest.raises(ExecutionError, match="1 launches are waiting. Synchronise first"):
            device.copy_out(buffer)
    device.synchronize()
    assert device.memory.used == 2 * X.nbytes
    assert (device.copy_out(y) == 2 * X).all()


def test_errors_are_said_by_synchronize(device: Accelerator) -> None:
    x = device.copy_in(X, "float32")
    (wrong,) = device.launch("mm.default", [x, x], {}, [SHAPE])
    assert wrong is not None
    after = double(device, wrong)
    device.free(x)
    with pytest.raises(ExecutionError, match="mm.default failed: mat1 and mat2"):
        device.synchronize()
    with pytest.raises(ExecutionError, match="holds nothing"):
        device.copy_out(after)
    assert device.memory.used == 0  # what was freed is free
    y = device.copy_in(X, "float32")
    device.synchronize()
    assert (device.copy_out(y) == X).all()


def test_a_result_of_another_size_than_was_stated(device: Accelerator) -> None:
    x = device.copy_in(X, "float32")
    device.launch("add.Tensor", [x, x], {}, [("float32", (3, 2))])
    with pytest.raises(ExecutionError, match=r"of shape \(3, 2\); \(2, 3\) was to be put there"):
        device.synchronize()
    device.launch("add.Tensor", [x, x], {}, [SHAPE, SHAPE])
    with pytest.raises(ExecutionError, match="made 1 results; the program states 2"):
        device.synchronize()


def test_an_operator_that_it_does_not_have(device: Accelerator) -> None:
    with pytest.raises(ExecutionError, match="fft.default was launched; openreg has no such"):
        device.launch("fft.default", [], {}, [])


def test_what_does_not_fit(device: Accelerator) -> None:
    big = np.zeros(200, np.float32)
    x = device.copy_in(big, "float32")
    with pytest.raises(ExecutionError, match="0.8 kB were to be allocated; 0.2 kB of 1.0 kB"):
        device.copy_in(big, "float32")
    assert device.memory.used == 800
    device.launch("add.Tensor", [x, x], {}, [("float32", (200,))])
    with pytest.raises(ExecutionError, match="were to be allocated"):
        device.synchronize()
    half = device.copy_in(big[:50], "float16")  # there is room for as much as is free
    assert device.memory.free == 100
    device.free(half)
    device.free(x)
    device.synchronize()
    assert device.memory.used == 0


def test_a_region_is_given_back_with_what_is_in_it(device: Accelerator) -> None:
    region = device.reserve(600)
    x = device.copy_in(X, "float32", region)
    assert (device.memory.used, region.used) == (600, X.nbytes)
    with pytest.raises(ExecutionError, match="free in a workspace"):
        device.copy_in(np.zeros(150, np.float32), "float32", region)
    with pytest.raises(ExecutionError, match="free in openreg:0"):
        device.reserve(500)
    device.release(region)
    assert device.memory.used == 0
    with pytest.raises(ExecutionError, match="was freed"):
        device.copy_out(x)


def test_a_device_is_the_same_for_everyone() -> None:
    assert accelerator(HARDWARE[0], 1000) is accelerator(HARDWARE[0], 1000)
    assert accelerator(HARDWARE[0], 1000) is not accelerator(HARDWARE[0], 2000)
    assert accelerator(HARDWARE[0], 1000) is not accelerator(HARDWARE[1], 1000)
