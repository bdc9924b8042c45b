"""Compressed constants, from a weight file that coremltools wrote, against its own expansion."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.backends.interpreters.mil.programs import normal, save_program

from perfuse_interpreters.mil.constants import CONSTANTS
from perfuse_interpreters.mil.interpreter import MilPredictor

_RANDOM = np.random.default_rng(3)


def _ios16(mb: Any) -> dict[str, Any]:
    from coremltools.optimize._utils import pack_elements_into_bits

    made = {}
    for bits in (1, 2, 4, 6, 8):
        indices = _RANDOM.integers(0, 2**bits, 5 * 7).astype(np.uint8)
        made[f"palette {bits}"] = mb.constexpr_lut_to_dense(
            indices=pack_elements_into_bits(indices, bits),
            lut=normal((2**bits,), "float16" if bits == 6 else "float32"),
            shape=np.array((5, 7), np.uint32),
        )
    for name, kind in (("affine", np.int8), ("unsigned", np.uint8)):
        data = _RANDOM.integers(np.iinfo(kind).min, np.iinfo(kind).max, (4, 5, 6)).astype(kind)
        made[f"{name} of an axis"] = mb.constexpr_affine_dequantize(
            quantized_data=data,
            zero_point=_RANDOM.integers(0, 9, 5).astype(kind),
            scale=np.abs(normal((5,))),
            axis=np.int32(1),
        )
        made[f"{name} of all"] = mb.constexpr_affine_dequantize(
            quantized_data=data, zero_point=kind(3), scale=np.float16(0.125), axis=np.int32(0)
        )
    return made


def _ios18(mb: Any) -> dict[str, Any]:
    from coremltools.converters.mil.mil import types

    made = {}
    for bits in (1, 2, 3, 4, 6, 8):
        kind = types.nptype_from_builtin(types.string_to_builtin(f"uint{bits}"))
        made[f"tables {bits}"] = mb.constexpr_lut_to_dense(
            indices=_RANDOM.integers(0, 2**bits, (6, 4, 3)).astype(kind),
            lut=normal((3, 2, 1, 2**bits, 1)),
        )
    pairs = types.nptype_from_builtin(types.uint2)
    for axis in (0, 1):
        made[f"vectors along {axis}"] = mb.constexpr_lut_to_dense(
            indices=_RANDOM.integers(0, 4, (6, 4)).astype(pairs),
            lut=normal((2, 1, 4, 3), "float16"),
            vector_axis=np.int32(axis),
        )
    signed = types.nptype_from_builtin(types.int4)
    made["blocks of four bits"] = mb.constexpr_blockwise_shift_scale(
        data=_RANDOM.integers(-8, 8, (6, 9)).astype(signed),
        scale=np.abs(normal((3, 9))),
        offset=_RANDOM.integers(-3, 3, (3, 9)).astype(signed),
    )
    made["blocks"] = mb.constexpr_blockwise_shift_scale(
        data=_RANDOM.integers(-128, 128, (6, 9)).astype(np.int8),
        scale=np.abs(normal((6, 3), "float16")),
    )
    return made


@pytest.mark.parametrize("target", ["iOS16", "iOS18"])
def test_compressed_constants_expand_as_coremltools_expands_them(target, tmp_path):
    right: dict[str, Any] = {}

    def body(mb: Any, x: Any) -> Any:
        given = []
        for name, constant in {"iOS16": _ios16, "iOS18": _ios18}[target](mb).items():
            right[name] = constant.op.materialized_val_inference()
            dtype = {np.float16: "fp16"}.get(right[name].dtype.type, "fp32")
            zero = mb.cast(x=x, dtype=dtype)  # a program's output is computed
            given.append(mb.add(x=constant, y=zero, name=f"out_{len(given)}"))
        return given

    package = save_program(
        tmp_path / "constants.mlpackage", {"x": ((1,), "fp32")}, body, target=target
    )
    predictor = MilPredictor(package)
    found = predictor({"x": np.zeros(1, np.float32)})
    for index, (name, expected) in enumerate(right.items()):
        given = found[f"out_{index}"]
        assert given.dtype == expected.dtype, name
        np.testing.assert_allclose(given, expected, rtol=1e-6, atol=0, err_msg=name)
    kept = predictor._function.constants
    assert not any("indices" in name or "data" in name for name in kept)  # packed ones are released


def test_the_table_of_constants_is_what_the_exporter_writes():
    assert set(CONSTANTS) == {
        "constexpr_affine_dequantize",
        "constexpr_blockwise_shift_scale",
        "constexpr_lut_to_dense",
    }


def test_packed_indices_that_do_not_make_the_shape_are_refused(tmp_path: Path):
    import torch

    from perfuse.errors import ArtifactError

    expand = CONSTANTS["constexpr_lut_to_dense"]
    palette, shape = torch.zeros(4), torch.tensor([3, 3])
    assert expand(torch.zeros(3, dtype=torch.uint8), palette, shape).shape == (3, 3)
    with pytest.raises(ArtifactError, match=r"2 bytes of indices into 4 values do not make \[3, 3"):
        expand(torch.zeros(2, dtype=torch.uint8), palette, shape)
