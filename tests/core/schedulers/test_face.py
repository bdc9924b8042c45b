"""The Diffusers-compatible face: configs, files, errors, numpy arrays."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import perfuse.schedulers
from perfuse.errors import CheckpointError, InputError
from perfuse.schedulers import SCHEDULERS, SHORT_NAMES, scheduler_class, scheduler_from_config

SHAPE = (1, 3, 4, 4)
X = np.random.default_rng(0).standard_normal(SHAPE).astype(np.float32)


@pytest.mark.parametrize("name", SCHEDULERS)
def test_names(name: str) -> None:
    assert getattr(perfuse.schedulers, name) is scheduler_class(name)
    assert name in dir(perfuse.schedulers)
    assert isinstance(scheduler_from_config({"_class_name": name}), scheduler_class(name))


def test_short_names() -> None:
    for name in ("ddim", "euler", "euler-ancestral", "dpm++", "dpmsolver-multistep", "unipc"):
        assert scheduler_class(name).__name__ == SHORT_NAMES[name]
    assert scheduler_class("flow_match_euler").__name__ == "FlowMatchEulerDiscreteScheduler"
    with pytest.raises(InputError, match="euler-ancestral"):
        scheduler_class("eular")
    with pytest.raises(AttributeError):
        _ = perfuse.schedulers.Eular


@pytest.mark.parametrize("config", [{}, {"_class_name": "Eular"}, {"_class_name": None}])
def test_an_unknown_class_lists_the_known(config: dict[str, Any]) -> None:
    with pytest.raises(CheckpointError, match="DDIMScheduler"):
        scheduler_from_config(config)


@pytest.mark.parametrize("name", SCHEDULERS)
def test_save_and_load(name: str, tmp_path: Path) -> None:
    first = scheduler_class(name).from_config({"num_train_timesteps": 500, "unheard_of": [1]})
    first.save_pretrained(tmp_path / "scheduler")
    assert [p.name for p in (tmp_path / "scheduler").iterdir()] == ["scheduler_config.json"]
    second = scheduler_class(name).from_pretrained(tmp_path, subfolder="scheduler")
    shown = [{k: v for k, v in s.config.items() if k[0] != "_"} for s in (first, second)]
    assert shown[0] == shown[1]
    assert second.config.unheard_of == [1]
    assert second.config._class_name == name


def test_damaged_files(tmp_path: Path) -> None:
    cls = scheduler_class("ddim")
    with pytest.raises(CheckpointError, match="scheduler_config.json"):
        cls.from_pretrained(tmp_path)
    for text in ("{", "[]"):
        (tmp_path / "scheduler_config.json").write_text(text)
        with pytest.raises(CheckpointError):
            cls.from_pretrained(tmp_path)


def test_the_config_is_read_only() -> None:
    config = scheduler_class("ddim")(clip_sample=False).config
    assert config.clip_sample is config["clip_sample"] is False
    with pytest.raises(AttributeError, match="cannot be changed"):
        config.clip_sample = True
    with pytest.raises(TypeError):
        config["clip_sample"] = True
    with pytest.raises(AttributeError):
        _ = config.nothing
    json.dumps(dict(config))


def test_defaults_are_not_carried_over() -> None:
    ddim = scheduler_class("ddim")(beta_end=0.012, clip_sample=False)
    euler = scheduler_class("euler").from_config(ddim.config)
    assert euler.config.beta_end == 0.012
    assert euler.config.timestep_spacing == "linspace"  # DDIM's own default is leading
    back = scheduler_class("ddim").from_config(euler.config)
    assert back.config.clip_sample is False


@pytest.mark.parametrize("name", SCHEDULERS)
@pytest.mark.parametrize("count", [0, -3, 2.5, True, "8"])
def test_counts_that_are_none(name: str, count: Any) -> None:
    with pytest.raises(InputError, match="at least 1"):
        scheduler_class(name)().schedule(count)
    with pytest.raises(InputError):
        scheduler_class(name)().schedule()


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("ddim", {"beta_schedule": "quadratic"}),
        ("ddim", {"prediction_type": "noise"}),
        ("ddim", {"num_train_timesteps": 0}),
        ("ddim", {"clip_samples": True}),
        ("ddpm", {"variance_type": "small"}),
        ("pndm", {"prediction_type": "sample"}),
        ("euler", {"final_sigmas_type": "none"}),
        ("euler", {"use_karras_sigmas": True, "use_exponential_sigmas": True}),
        ("euler-ancestral", {"prediction_type": "sample"}),
        ("dpm++", {"solver_order": 4}),
        ("dpm++", {"algorithm_type": "dpm"}),
        ("unipc", {"solver_type": "bh3"}),
        ("unipc", {"solver_p": "another"}),
        ("flow-match-euler", {"time_shift_type": "cubic"}),
    ],
)
def test_settings_that_are_none(name: str, settings: dict[str, Any]) -> None:
    with pytest.raises(InputError) as caught:
        scheduler_class(name)(**settings)
    assert str(caught.value).endswith(".")


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("ddim", {"timesteps": [3, 1]}),
        ("ddim", {"num_inference_steps": 1001}),
        ("ddpm", {"timesteps": []}),
        ("ddpm", {"timesteps": [1, 3]}),
        ("ddpm", {"timesteps": [3, 1], "num_inference_steps": 2}),
        ("euler", {"sigmas": [1.0, 0.0], "num_inference_steps": 1}),
        ("lcm", {"num_inference_steps": 51}),
        ("lcm", {"num_inference_steps": 4, "original_inference_steps": 0}),
        ("unipc", {"num_inference_steps": 4, "sigmas": [1.0, 0.5]}),
        ("ddim", {"num_inference_steps": 4, "strength": 0.5}),
        ("ddim", {"num_inference_steps": 4, "eta": -1.0}),
    ],
)
def test_requests_that_are_none(name: str, arguments: dict[str, Any]) -> None:
    with pytest.raises(InputError):
        scheduler_class(name)().schedule(**arguments)


def test_one_step_without_set_timesteps() -> None:
    scheduler = scheduler_class("ddpm")()
    out = scheduler.step(X * 0.1, 500, X)
    assert out.prev_sample.shape == SHAPE
    assert out.prev_sample.dtype == np.float32
    assert out[0] is out.prev_sample
    assert out["pred_original_sample"] is out.pred_original_sample


def test_the_others_want_set_timesteps() -> None:
    for name in ("unipc", "ddim"):
        with pytest.raises(InputError, match="set_timesteps"):
            scheduler_class(name)().step(X, 500, X)


def test_a_position_is_no_timestep() -> None:
    scheduler = scheduler_class("euler")()
    scheduler.set_timesteps(2)
    with pytest.raises(InputError, match="is an integer"):
        scheduler.step(X, 1, X)


def test_past_the_end_and_off_the_list() -> None:
    scheduler = scheduler_class("euler")()
    scheduler.set_timesteps(2)
    with pytest.raises(InputError, match="not one of"):
        scheduler.step(X, 1.0, X)
    for t in scheduler.timesteps:
        scheduler.step(X, t, X)
    with pytest.raises(InputError, match="are done"):
        scheduler.step(X, t, X)
    scheduler.set_timesteps(2)
    scheduler.step(X, scheduler.timesteps[0], X)


def test_one_source_of_noise() -> None:
    scheduler = scheduler_class("ddpm")()
    with pytest.raises(InputError, match="not both"):
        scheduler.step(X, 5, X, noise=X, generator=np.random.default_rng(0))


def test_return_dict() -> None:
    ddim, unipc = scheduler_class("ddim")(), scheduler_class("unipc")()
    ddim.set_timesteps(4)
    assert len(ddim.step(X, 500, X, return_dict=False)) == 2
    unipc.set_timesteps(4)
    assert len(unipc.step(X, unipc.timesteps[0], X, return_dict=False)) == 1


def test_compatibles() -> None:
    names = {cls.__name__ for cls in scheduler_class("ddim")().compatibles}
    assert {"DDIMScheduler", "EulerDiscreteScheduler", "HeunDiscreteScheduler"} < names
    assert "LCMScheduler" not in names
    assert scheduler_class("lcm")().compatibles == [scheduler_class("lcm")]
