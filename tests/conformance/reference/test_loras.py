"""The suite's own LoRA: what it makes of a component, and files of one's own in its place."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from perfuse import ArtifactStore, DiffusionPipeline
from perfuse.backend import Target
from perfuse.errors import WeightsError
from perfuse.plugins import host
from perfuse_conformance.judge.results import Status
from perfuse_conformance.reference.loras import OwnLora, truth
from perfuse_conformance.report.single import judge_single
from perfuse_conformance.runner.session import open_session


def text_encoder() -> tuple[DiffusionPipeline, OwnLora]:
    pipe = DiffusionPipeline.from_pretrained(backend="torch:cpu")
    plain = pipe.component("text_encoder")
    return pipe, OwnLora(component=plain.spec, shapes=pipe.weight_shapes(plain))


def test_what_is_right_of_it_is_what_perfuse_reads() -> None:
    pipe, own = text_encoder()
    plain = pipe.component("text_encoder")
    given: dict[str, Any] = {"input_ids": np.full((1, 32), 611, np.int64)}
    pipe.load_lora_weights(own.tensors(), adapter_name="own")
    without = truth(plain, given)["last_hidden_state"]
    for scale in (1.0, -0.5):
        pipe.set_adapters("own", scale)
        program = (
            host()
            .backend("torch")
            .prepare(
                pipe.component("text_encoder"), Target(backend="torch"), ArtifactStore.default()
            )
        )
        found = program(**given)["last_hidden_state"]
        right = truth(plain, given, own, scale)["last_hidden_state"]
        assert np.abs(right - without).max() > 0.01 * np.abs(without).max()
        assert np.abs(found - right).max() < 1e-5 * np.abs(right).max()


def test_one_for_another_model_is_refused_before_anything_is_measured(tmp_path: Path) -> None:
    from safetensors.numpy import save_file

    file = tmp_path / "other.safetensors"
    save_file({"lora_unet_nowhere.lora_down.weight": np.zeros((4, 4), np.float32)}, file)
    with pytest.raises(WeightsError, match="nowhere"):
        open_session("torch:cpu", lora=file)


@pytest.mark.exhaustive
def test_one_of_one_s_own(tmp_path: Path) -> None:
    from safetensors.numpy import save_file

    _, own = text_encoder()
    file = tmp_path / "own.safetensors"
    save_file(own.tensors(), file)
    ids = ["weights/text_encoder/adapters", "weights/unet/adapters"]
    results = judge_single("onnxruntime:cpu", ids, level="L2", lora=file)
    assert [result.status for result in results] == [Status.PASS] * 2
