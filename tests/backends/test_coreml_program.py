"""A component's packages as a program, with predictors that are a few lines of numpy."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from perfuse.backend import Component, ExecutionReport
from perfuse.errors import ArtifactError, ExecutionError, InputError
from perfuse.run.fixed_batch import FixedBatch, fixed_batch
from perfuse.spec import ComponentSpec, Signature, TensorSpec
from perfuse_coreml.program import CoreMLProgram
from perfuse_exporters.coreml.mlpackage import parts_of

Ports = Mapping[str, tuple[tuple[int, ...], str]]
REPORT = ExecutionReport(device="stand-in", precision="float32", engine="numpy")


class Numpy:
    """A predictor that keeps what it is given, and refuses what it has not declared."""

    def __init__(self, inputs: Ports, outputs: Ports, run: Callable[..., Any]) -> None:
        self.inputs, self.outputs, self._run = inputs, outputs, run
        self.given: list[dict[str, Any]] = []

    def __call__(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        found = {name: (array.shape, array.dtype.name) for name, array in inputs.items()}
        assert found == dict(self.inputs)
        assert all(array.flags.c_contiguous for array in inputs.values())
        self.given.append(dict(inputs))
        return dict(zip(self.outputs, self._run(**inputs), strict=True))


def unet(*, apple: bool = False, xl: bool = False, batch: int = 2) -> Component:
    inputs = [
        TensorSpec(name="sample", dtype="float", shape=("batch", 4, "latent_height", 8)),
        TensorSpec(name="timestep", dtype="float32", shape=("batch",)),
        TensorSpec(name="encoder_hidden_states", dtype="float", shape=("batch", "sequence", 5)),
    ]
    if xl:
        inputs.append(TensorSpec(name="time_ids", dtype="float", shape=("batch", 6)))
    output = TensorSpec(name="out_sample", dtype="float", shape=("batch", 4, "latent_height", 8))
    signature = Signature(inputs=tuple(inputs), outputs=(output,))
    spec = ComponentSpec(
        name="unet",
        class_name="UNet2DConditionModel",
        folder="unet",
        config={},
        signature=signature,
    )
    return Component(
        spec=spec,
        static={"batch": batch, "latent_height": 8, "sequence": 3},
        options={"dialect": "apple"} if apple else {},
    )


def arrays(batch: int = 2, **others: Any) -> dict[str, Any]:
    random = np.random.default_rng(0)
    return {
        "sample": random.standard_normal((batch, 4, 8, 8)).astype(np.float32),
        "timestep": np.full(batch, 999.3, np.float32),
        "encoder_hidden_states": random.standard_normal((batch, 3, 5)).astype(np.float32),
        **others,
    }


NATIVE = {
    "sample": ((2, 4, 8, 8), "float32"),
    "timestep": ((2,), "float32"),
    "encoder_hidden_states": ((2, 3, 5), "float32"),
}
APPLE = {
    "sample": ((2, 4, 8, 8), "float16"),
    "timestep": ((2,), "float16"),
    "encoder_hidden_states": ((2, 5, 1, 3), "float16"),
}
OUT = {"out_sample": ((2, 4, 8, 8), "float32")}


def test_names_and_types_of_our_own() -> None:
    part = Numpy(NATIVE, OUT, lambda sample, **_: [2 * sample])
    program = CoreMLProgram(unet(), [part], REPORT)
    inputs = arrays()
    outputs = program(**inputs)
    np.testing.assert_array_equal(outputs["out_sample"], 2 * inputs["sample"])
    assert part.given[0]["timestep"][0] == np.float32(999.3)
    assert program.report() == REPORT


def test_apples_names_types_and_layout() -> None:
    part = Numpy(APPLE, {"noise_pred": ((2, 4, 8, 8), "float16")}, lambda sample, **_: [sample])
    program = CoreMLProgram(unet(apple=True), [part], REPORT)
    inputs = arrays()
    outputs = program(**inputs)
    assert outputs["out_sample"].dtype == np.float32
    np.testing.assert_array_equal(outputs["out_sample"], inputs["sample"].astype(np.float16))
    states = part.given[0]["encoder_hidden_states"]
    np.testing.assert_array_equal(
        states[:, :, 0].transpose(0, 2, 1), inputs["encoder_hidden_states"].astype(np.float16)
    )
    assert part.given[0]["timestep"][0] == 999.5
    assert program.report().fallbacks == (
        "sample, timestep, encoder_hidden_states are rounded to float16, as the file takes them",
    )
    half = replace(unet(apple=True), precision="float16")
    assert CoreMLProgram(half, [part], REPORT).report() == REPORT


@pytest.mark.parametrize("shape", [(2, 6), (12,)])
def test_the_sizes_of_xl_in_both_of_apples_shapes(shape: tuple[int, ...]) -> None:
    part = Numpy(
        {**APPLE, "time_ids": (shape, "float16")},
        {"noise_pred": ((2, 4, 8, 8), "float32")},
        lambda sample, **_: [sample],
    )
    ids = np.arange(12, dtype=np.float32).reshape(2, 6)
    CoreMLProgram(unet(apple=True, xl=True), [part], REPORT)(**arrays(time_ids=ids))
    np.testing.assert_array_equal(part.given[0]["time_ids"].ravel(), np.arange(12))


def test_chunks_take_what_the_first_gives_and_what_was_given() -> None:
    first = Numpy(
        {"sample": NATIVE["sample"], "timestep": NATIVE["timestep"]},
        {"hidden": ((2, 4, 8, 8), "float32")},
        lambda sample, timestep: [sample + timestep[0]],
    )
    second = Numpy(
        {
            "hidden": ((2, 4, 8, 8), "float16"),
            "encoder_hidden_states": NATIVE["encoder_hidden_states"],
        },
        OUT,
        lambda hidden, encoder_hidden_states: [hidden * encoder_hidden_states[0, 0, 0]],
    )
    inputs = arrays()
    outputs = CoreMLProgram(unet(), [first, second], REPORT)(**inputs)
    hidden = (inputs["sample"] + inputs["timestep"][0]).astype(np.float16)
    expected = hidden * inputs["encoder_hidden_states"][0, 0, 0]
    np.testing.assert_array_equal(outputs["out_sample"], expected)


def test_guidance_and_single_pictures_through_the_batch_that_was_exported() -> None:
    part = Numpy(NATIVE, OUT, lambda sample, **_: [2 * sample])
    program = CoreMLProgram(unet(), [part], REPORT)
    size = fixed_batch(program.signature.inputs)
    assert size == 2
    host = FixedBatch(program, size)
    for batch, calls in ((1, 1), (2, 1), (5, 3)):
        part.given.clear()
        inputs = arrays(batch)
        outputs = host(**inputs)
        np.testing.assert_array_equal(outputs["out_sample"], 2 * inputs["sample"])
        assert len(part.given) == calls


def text_encoder(dtype: str) -> tuple[Component, Numpy]:
    tokens = TensorSpec(name="input_ids", dtype="int64", shape=("batch", "sequence"))
    states = TensorSpec(name="last_hidden_state", dtype="float", shape=("batch", "sequence", 1))
    spec = ComponentSpec(
        name="text_encoder",
        class_name="CLIPTextModel",
        folder="text_encoder",
        config={},
        signature=Signature(inputs=(tokens,), outputs=(states,)),
    )
    part = Numpy(
        {"input_ids": ((1, 3), dtype)},
        {"last_hidden_state": ((1, 3, 1), "float32")},
        lambda input_ids: [input_ids[..., None].astype(np.float32)],
    )
    return Component(spec=spec, static={"batch": 1, "sequence": 3}), part


@pytest.mark.parametrize("dtype", ["int32", "float32"])
def test_token_ids_arrive_whole(dtype: str) -> None:
    component, part = text_encoder(dtype)
    ids = np.array([[49406, 49407, 0]])
    outputs = CoreMLProgram(component, [part], REPORT)(input_ids=ids)
    np.testing.assert_array_equal(outputs["last_hidden_state"][..., 0], ids)


def test_a_fraction_that_would_be_cut_off() -> None:
    part = Numpy({**NATIVE, "timestep": ((2,), "int32")}, OUT, lambda sample, **_: [sample])
    program = CoreMLProgram(unet(), [part], REPORT)
    program(**arrays(timestep=np.full(2, 999.0, np.float32)))
    with pytest.raises(InputError, match=r"timestep 999\.29.*cut the fraction off"):
        program(**arrays())


def test_another_size() -> None:
    part = Numpy(NATIVE, OUT, lambda sample, **_: [sample])
    program = CoreMLProgram(unet(), [part], REPORT)
    with pytest.raises(InputError, match=r"exported for batch 2, latent_height 8.*latent_height 4"):
        program(**arrays(sample=np.zeros((2, 4, 4, 8), np.float32)))
    with pytest.raises(InputError, match="missing: timestep"):
        program(sample=np.zeros((2, 4, 8, 8)), encoder_hidden_states=np.zeros((2, 3, 5)))


def test_files_of_something_else() -> None:
    with pytest.raises(ArtifactError, match=r"asks for additional_residual_0, too"):
        more = {**NATIVE, "additional_residual_0": ((2, 4), "float32")}
        CoreMLProgram(unet(), [Numpy(more, OUT, lambda **_: [])], REPORT)
    with pytest.raises(ArtifactError, match="its file has no timestep"):
        fewer = {name: port for name, port in NATIVE.items() if name != "timestep"}
        CoreMLProgram(unet(), [Numpy(fewer, OUT, lambda **_: [])], REPORT)
    with pytest.raises(ArtifactError, match=r"gives out_sample; its file gives noise_pred"):
        other = {"noise_pred": OUT["out_sample"]}
        CoreMLProgram(unet(), [Numpy(NATIVE, other, lambda **_: [])], REPORT)


def test_closed() -> None:
    program = CoreMLProgram(unet(), [Numpy(NATIVE, OUT, lambda **_: [])], REPORT)
    program.close()
    with pytest.raises(ExecutionError, match="unet was closed"):
        program(**arrays())


@pytest.mark.parametrize(
    "names",
    [
        ("model.mlpackage",),
        ("model_chunk1.mlpackage", "model_chunk2.mlpackage"),
        (
            "Stable_Diffusion_version_a_unet_chunk1.mlpackage",
            "Stable_Diffusion_version_a_unet_chunk2.mlpackage",
        ),
        ("UnetChunk1.mlmodelc", "UnetChunk2.mlmodelc"),
        ("Unet.mlmodelc",),
    ],
)
def test_the_parts_of_a_component(names: tuple[str, ...], tmp_path: Path) -> None:
    for name in names:
        (tmp_path / name).mkdir()
    assert [part.name for part in parts_of(tmp_path / names[0])] == list(names)
    if len(names) > 1:
        (tmp_path / names[1]).rmdir()
        with pytest.raises(ArtifactError, match=f"{names[1]} is not beside it"):
            parts_of(tmp_path / names[0])
