"""How a program runs: in its own types, held against what it declares, with the sizes it was made for."""

import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.backends.interpreters.mil.programs import (
    block_of,
    constant_of,
    copied,
    edited,
    normal,
    operation_of,
    save_program,
)

from perfuse.errors import ArtifactError, InputError, UnsupportedError
from perfuse_exporters.coreml.tools import import_coremltools, quiet
from perfuse_interpreters.mil import operations
from perfuse_interpreters.mil.interpreter import MilPredictor


def _predictor(folder: Path, *args: Any, **settings: Any) -> MilPredictor:
    return MilPredictor(save_program(folder / "one.mlpackage", *args, **settings))


# Its own types


def test_halves_are_rounded_after_every_operation(tmp_path):
    """2048 + 1 is 2048 in float16; who adds in float32 and rounds once at the end gets 2052."""

    def body(mb: Any, x: Any) -> Any:
        for _ in range(4):
            x = mb.add(x=x, y=np.float16(1))
        return mb.identity(x=x, name="y")

    halves = _predictor(tmp_path, {"x": ((3,), "fp16")}, body)
    x = np.array([2048, 1, 0.1], np.float16)
    np.testing.assert_array_equal(halves({"x": x})["y"], np.array([2048, 5, 4.1], np.float16))
    assert halves.precision == "float16"


def test_an_operation_in_halves_is_rounded_once(tmp_path):
    """A sum is added up in float32: 4096 ones, of which float16 could count 2048."""
    halves = _predictor(
        tmp_path,
        {"x": ((1, 4096), "fp16")},
        lambda mb, x: mb.reduce_sum(x=x, axes=[1], name="y"),
    )
    assert halves({"x": np.ones((1, 4096), np.float16)})["y"] == 4096


def test_what_overflows_is_infinite_and_not_the_largest_number(tmp_path):
    halves = _predictor(
        tmp_path,
        {"x": ((4,), "fp16")},
        lambda mb, x: (mb.square(x=x, name="y"), mb.mul(x=mb.square(x=x), y=x, name="z")),
    )
    found = halves({"x": np.array([255, 257, -257, np.nan], np.float16)})
    np.testing.assert_array_equal(found["y"][1:], np.array([np.inf, np.inf, np.nan], np.float16))
    assert np.isfinite(found["y"][0])
    np.testing.assert_array_equal(found["z"][1:3], np.array([np.inf, -np.inf], np.float16))


def test_float16_and_float32_in_one_program(tmp_path):
    def body(mb: Any, x: Any) -> Any:
        half = mb.mul(x=mb.cast(x=x, dtype="fp16"), y=np.float16(1))
        return mb.add(x=mb.cast(x=half, dtype="fp32"), y=np.float32(2**-20), name="y")

    mixed = _predictor(tmp_path, {"x": ((1,), "fp32")}, body)
    found = mixed({"x": np.array([1 + 2**-15], np.float32)})["y"]
    assert found == np.float32(1 + 2**-20)
    assert found.dtype == np.float32


# What it declares


@pytest.fixture(scope="module")
def convolution(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_program(
        tmp_path_factory.mktemp("convolution") / "model.mlpackage",
        {"x": ((1, 2, 8, 8), "fp32")},
        lambda mb, x: mb.relu(
            x=mb.conv(
                x=x,
                weight=normal((4, 2, 3, 3)),
                pad_type="custom",
                pad=[1, 1, 1, 1],
                strides=[1, 1],
                name="features",
            ),
            name="y",
        ),
    )


def _rename(model: Any) -> None:
    operation_of(model, "relu").type = "relu7"


def _forget(model: Any) -> None:
    del operation_of(model, "conv").inputs["weight"]


def _another_parameter(model: Any) -> None:
    conv = operation_of(model, "conv")
    conv.inputs["kernel"].CopyFrom(conv.inputs["weight"])


def _same_padding(model: Any) -> None:
    constant = constant_of(model, operation_of(model, "conv"), "pad_type")
    constant.attributes["val"].immediateValue.tensor.strings.values[0] = "same"


def _strides(model: Any) -> None:
    constant = constant_of(model, operation_of(model, "conv"), "strides")
    constant.attributes["val"].immediateValue.tensor.ints.values[:] = [2, 2]


def _dtype(model: Any) -> None:
    operation_of(model, "conv").outputs[0].type.tensorType.dataType = 10  # FLOAT16


def _too_few(model: Any) -> None:
    constant = constant_of(model, operation_of(model, "conv"), "strides")
    del constant.attributes["val"].immediateValue.tensor.ints.values[1:]


def _from_nowhere(model: Any) -> None:
    operation_of(model, "relu").inputs["x"].arguments[0].name = "elsewhere"


def _twice(model: Any) -> None:
    operation_of(model, "relu").outputs[0].name = "x"


def _no_such_output(model: Any) -> None:
    block_of(model).outputs[0] = "z"


def _other_name(model: Any) -> None:
    model.description.input[0].name = "sample"


def _no_block(model: Any) -> None:
    model.mlProgram.functions["main"].opset = "CoreML9"


def _other_dtype(model: Any) -> None:
    model.description.output[0].type.multiArrayType.dataType = 65552  # FLOAT16


def _other_size(model: Any) -> None:
    model.mlProgram.functions["main"].inputs[0].type.tensorType.dimensions[2].constant.size = 9


def _other_opset(model: Any) -> None:
    function = model.mlProgram.functions["main"]
    function.block_specializations["CoreML4"].CopyFrom(block_of(model))
    function.opset = "CoreML4"


def _no_argument(model: Any) -> None:
    del operation_of(model, "relu").inputs["x"].arguments[:]


def _an_image(model: Any) -> None:
    model.description.input[0].type.imageType.width = 8


def _no_type(model: Any) -> None:
    operation_of(model, "relu").outputs[0].type.tensorType.dataType = 99


def _a_list(model: Any) -> None:
    operation_of(model, "relu").outputs[0].type.listType.length.constant.size = 1


FAULTS = {
    _rename: (
        UnsupportedError,
        r"one\.mlpackage has the operation relu7, which gives y; the inter",
    ),
    _forget: (ArtifactError, r"conv, which gives features, has no weight"),
    _another_parameter: (
        UnsupportedError,
        r"gives conv, which makes features, the parameter kernel",
    ),
    _same_padding: (UnsupportedError, r"conv, which gives features: .* not know pad_type=same"),
    _strides: (
        ArtifactError,
        r"features is declared as float32 \[1, 4, 8, 8\]; conv gives .*4, 4, 4",
    ),
    _dtype: (ArtifactError, r"features is declared as float16 \[1, 4, 8, 8\]; conv gives float32"),
    _too_few: (ArtifactError, r"declared as int32 \[2\]; it holds 1 ints"),
    _from_nowhere: (
        ArtifactError,
        r"relu that gives y takes elsewhere as x, which nothing has made",
    ),
    _twice: (ArtifactError, r"x is given twice"),
    _no_such_output: (ArtifactError, r"it gives z, which nothing made"),
    _other_name: (ArtifactError, r"described with sample \(float32\); its program has x"),
    _no_block: (ArtifactError, r"main has no block for CoreML9"),
    _other_dtype: (ArtifactError, r"described with y \(float16\); its program has y \(float32\)"),
    _other_size: (ArtifactError, r"x is declared as .*9, 8\]; its description gives .*8, 8\]"),
    _other_opset: (UnsupportedError, r"is written in CoreML4; CoreML5, .* are known"),
    _no_argument: (ArtifactError, r"relu that gives y takes 0 values as x"),
    _an_image: (UnsupportedError, r"takes x as imageType; arrays are interpreted"),
    _no_type: (ArtifactError, r"y has elements of the unknown type 99"),
    _a_list: (UnsupportedError, r"has y, which is no tensor of a fixed rank"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_program_is_held_against_what_it_declares(fault, convolution, tmp_path):
    error, said = FAULTS[fault]
    package = copied(convolution, tmp_path).rename(tmp_path / "one.mlpackage")
    with edited(package) as model:
        fault(model)
    with pytest.raises(error, match=said):
        MilPredictor(package)({"x": normal((1, 2, 8, 8))})


@pytest.mark.export
def test_an_operation_that_cannot_be_computed_is_named(convolution, tmp_path):
    package = copied(convolution, tmp_path)
    with edited(package) as model:
        model.description.input[0].type.multiArrayType.shape[1] = 3
        block = model.mlProgram.functions["main"].inputs[0].type.tensorType
        block.dimensions[1].constant.size = 3
    with pytest.raises(
        ArtifactError, match=r"conv, which gives features, cannot be computed: RuntimeError: Given"
    ):
        MilPredictor(package)({"x": normal((1, 3, 8, 8))})


@pytest.mark.parametrize(
    ("build", "said"),
    [
        (lambda mb, x: mb.concat(values=(x, x), axis=0, interleave=True), "interleave=True"),
        (lambda mb, x: mb.gather(x=x, indices=[0], batch_dims=1, axis=1), "batch_dims=1"),
        (lambda mb, x: mb.gather_nd(x=x, indices=[[0]], batch_dims=1), "batch_dims=1"),
        (lambda mb, x: mb.upsample_nearest_neighbor(x=x, scale_factor_height=1.5), "scale_factor="),
        (
            lambda mb, x: mb.slice_by_index(x=x, begin=[0, 0, 3], end=[1, 2, 0], stride=[1, 1, -1]),
            r"stride=\[1, 1, -1\]",
        ),
    ],
)
def test_a_value_of_a_parameter_that_is_not_known_is_refused_by_name(build, said, tmp_path):
    shape = (1, 2, 4)
    predictor = _predictor(tmp_path, {"x": (shape, "fp32")}, build)
    with pytest.raises(UnsupportedError, match=rf"one\.mlpackage: .* does not know {said}"):
        predictor({"x": normal(shape)})


@pytest.mark.parametrize(
    ("target", "indices", "fits"),
    [
        ("iOS16", [-1, 2], True),  # a negative index counts from the end until iOS 17
        ("iOS17", [0, 2], True),
        ("iOS17", [-1, 2], False),
        ("iOS16", [0, 3], False),
    ],
)
def test_an_index_out_of_bounds_is_an_error(target, indices, fits, tmp_path):
    predictor = _predictor(
        tmp_path,
        {"x": ((3, 4), "fp32"), "i": ((2,), "int32")},
        lambda mb, x, i: mb.gather(x=x, indices=i, axis=0, name="y"),
        target=target,
    )
    given = {"x": normal((3, 4)), "i": np.array(indices, np.int32)}
    if fits:
        np.testing.assert_array_equal(predictor(given)["y"], given["x"][indices])
    else:
        with pytest.raises(ArtifactError, match="an index is out of bounds"):
            predictor(given)


def test_another_equation_than_core_mls_is_refused():
    with pytest.raises(UnsupportedError, match="equation=bij,bjk->bik"):
        operations.OPERATIONS["einsum"](
            values=(torch.ones(1, 2, 3), torch.ones(1, 3, 2)), equation="bij,bjk->bik"
        )


# Its inputs and outputs


def test_inputs_are_those_of_the_file(convolution):
    predictor = MilPredictor(convolution)
    x = normal((1, 2, 8, 8))
    for given, said in (
        ({}, "takes x; got none"),
        ({"x": x, "y": x}, "takes x; got x, y"),
        ({"x": x.astype(np.float16)}, r"takes x as float32 of \(1, 2, 8, 8\); got float16"),
        ({"x": x[:, :, :4]}, r"got float32 of \(1, 2, 4, 8\)"),
    ):
        with pytest.raises(InputError, match=said):
            predictor(given)


def test_outputs_are_the_callers_and_inputs_are_left_alone(tmp_path):
    predictor = _predictor(
        tmp_path, {"x": ((4,), "fp32")}, lambda mb, x: mb.identity(x=x, name="y")
    )
    x = normal((4,))
    x.setflags(write=False)
    first = predictor({"x": x})["y"]
    kept = first.copy()
    first[:] = 0
    np.testing.assert_array_equal(predictor({"x": x})["y"], kept)
    np.testing.assert_array_equal(x, kept)


def test_a_value_is_released_after_its_last_use(tmp_path, monkeypatch):
    alive: list[Any] = []
    most = []
    relu = operations._TABLE["relu"]

    def counted(x: torch.Tensor) -> torch.Tensor:
        found = relu(x=x)
        alive.append(weakref.ref(found))
        most.append(sum(ref() is not None for ref in alive))
        return found

    monkeypatch.setitem(operations._TABLE, "relu", counted)

    def body(mb: Any, x: Any) -> Any:
        for index in range(6):
            x = mb.relu(x=x, name=f"r{index}")
        return x

    predictor = _predictor(tmp_path, {"x": ((4,), "fp32")}, body)
    predictor({"x": normal((4,))})
    assert len(most) == 6
    assert max(most) == 2  # what is computed, and what it is computed from


# Several sizes, several functions


class _Rows(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        n, c, h, w = x.shape
        rows = torch.nn.functional.silu(x).reshape(n, c, h * w).transpose(1, 2)
        rows = rows - rows.mean(1, keepdim=True)
        return rows.transpose(1, 2).reshape(n, c, h, w)[:, :, 1:] * h


def _converted(module: torch.nn.Module, shape: Any, package: Path) -> Path:
    """The module's package, for an input of coremltools' flexible shapes."""
    ct = import_coremltools()
    from torch.export import Dim, export

    height, width = Dim("height", min=3), Dim("width", min=3)
    with quiet():
        program = export(
            module, (torch.zeros(1, 3, 6, 4),), dynamic_shapes=({2: height, 3: width},)
        ).run_decompositions({})
        ct.convert(
            program,
            convert_to="mlprogram",
            inputs=[ct.TensorType(name="x", shape=shape)],
            outputs=[ct.TensorType(name="y")],
            compute_precision=ct.precision.FLOAT32,
            skip_model_load=True,
        ).save(str(package))
    return package


@pytest.mark.export
def test_a_list_of_sizes_takes_each_of_them_and_no_other(tmp_path):
    sizes = [(1, 3, 6, 4), (1, 3, 4, 10)]
    listed = import_coremltools().EnumeratedShapes(shapes=sizes)
    predictor = MilPredictor(_converted(_Rows().eval(), listed, tmp_path / "sizes.mlpackage"))
    assert predictor.inputs == {"x": (sizes[0], "float32")}
    for size in sizes:
        x = normal(size)
        right = _Rows()(torch.tensor(x)).numpy()
        np.testing.assert_allclose(predictor({"x": x})["y"], right, rtol=1e-5, atol=1e-6)
    with pytest.raises(InputError, match=r"of \(1, 3, 4, 10\) or \(1, 3, 6, 4\); got .*6, 10\)"):
        predictor({"x": normal((1, 3, 6, 10))})


@pytest.mark.export
def test_a_range_of_sizes_takes_what_is_in_it(tmp_path):
    ct = import_coremltools()
    ranges = (1, 3, ct.RangeDim(4, 9, default=6), ct.RangeDim(4, 60, default=4))
    predictor = MilPredictor(_converted(_Rows().eval(), ranges, tmp_path / "range.mlpackage"))
    for size in ((1, 3, 6, 4), (1, 3, 9, 50)):
        x = normal(size)
        right = _Rows()(torch.tensor(x)).numpy()
        np.testing.assert_allclose(predictor({"x": x})["y"], right, rtol=1e-5, atol=1e-6)
    with pytest.raises(InputError, match=r"got float32 of \(1, 3, 10, 4\)"):
        predictor({"x": normal((1, 3, 10, 4))})


def test_the_default_of_several_functions_runs(convolution, tmp_path):
    package = tmp_path / "two.mlpackage"
    ct = import_coremltools()
    with quiet():
        functions = ct.utils.MultiFunctionDescriptor()
        other = save_program(
            tmp_path / "other.mlpackage",
            {"x": ((2,), "fp32")},
            lambda mb, x: mb.exp(x=x, name="z"),
            target="iOS18",
        )
        functions.add_function(str(convolution), "main", "draw")
        functions.add_function(str(other), "main", "grow")
        functions.default_function_name = "grow"
        ct.utils.save_multifunction(functions, str(package))
    predictor = MilPredictor(package)
    assert list(predictor.inputs) == ["x"]
    np.testing.assert_allclose(predictor({"x": np.zeros(2, np.float32)})["z"], [1, 1])
    with edited(package) as model:
        model.description.defaultFunctionName = "shrink"
    with pytest.raises(ArtifactError, match="functions draw, grow; its default is shrink"):
        MilPredictor(package)
