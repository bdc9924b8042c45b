"""The scheduler classes against Diffusers', method by method: what a caller's code can notice."""

from __future__ import annotations

import copy
import inspect
import json
import pickle
import warnings
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")

from tests.oracle.scheduler_classes import NEED_TORCHSDE, oracle

from perfuse.errors import InputError
from perfuse.schedulers import SCHEDULERS, scheduler_class

SHAPE = (2, 3, 4, 4)
NAMES = sorted(SCHEDULERS)
OWN_STEP = ("ScoreSdeVeScheduler", "RePaintScheduler", "CogVideoXDPMScheduler")
"""Their steps take other arguments; they have tests of their own in test_schedulers."""
PLAIN = [name for name in NAMES if name not in OWN_STEP]
DRAWN_ELSEWHERE = tuple(NEED_TORCHSDE)
"""Their noise is torchsde's in Diffusers and another here."""


@pytest.fixture(autouse=True)
def quiet() -> Any:
    diffusers.utils.logging.set_verbosity_error()
    torch.set_num_threads(1)
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        yield
    diffusers.utils.logging.set_verbosity_warning()


def pair(name: str, **config: Any) -> tuple[Any, Any]:
    return oracle(name)(**config), scheduler_class(name)(**config)


def steps_of(name: str) -> dict[str, Any]:
    return {"intermediate_timesteps": None} if name == "SCMScheduler" else {}


def timed(name: str, count: int = 10, **config: Any) -> tuple[Any, Any]:
    both = pair(name, **config)
    for scheduler in both:
        scheduler.set_timesteps(count, **steps_of(name))
    return both


def calls(scheduler: Any) -> Any:
    scm = type(scheduler).__name__ == "SCMScheduler"
    return scheduler.timesteps[:-1] if scm else scheduler.timesteps


def close(a: Any, b: Any, tolerance: float = 1e-5) -> None:
    a, b = (np.asarray(torch.as_tensor(x).double()) for x in (a, b))
    assert a.shape == b.shape
    scale = max(np.abs(b).max(), 1e-12)
    assert np.abs(a - b).max() / scale <= tolerance


def sample(dtype: Any = None) -> Any:
    x = torch.randn(SHAPE, generator=torch.Generator().manual_seed(0))
    return x if dtype is None else x.to(dtype)


# ── Arguments and attributes ────────────────────────────────────────────────────────────────────


def positional(function: Any) -> list[str]:
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return [p.name for p in inspect.signature(function).parameters.values() if p.kind in kinds]


@pytest.mark.parametrize("method", ["__init__", "step", "set_timesteps", "add_noise"])
@pytest.mark.parametrize("name", NAMES)
def test_arguments_have_the_names_and_the_order_of_diffusers(name: str, method: str) -> None:
    theirs, ours = getattr(oracle(name), method, None), getattr(scheduler_class(name), method)
    if theirs is None:
        return
    assert positional(ours) == positional(theirs)


@pytest.mark.parametrize("name", NAMES)
def test_defaults_are_those_of_diffusers(name: str) -> None:
    for method in ("__init__", "step", "set_timesteps"):
        theirs = getattr(oracle(name), method, None)
        if theirs is None:
            continue
        ours = inspect.signature(getattr(scheduler_class(name), method)).parameters
        for key, parameter in inspect.signature(theirs).parameters.items():
            if parameter.kind is inspect.Parameter.VAR_KEYWORD:
                continue
            if parameter.default is not inspect.Parameter.empty:
                mine = ours[key].default
                # None and nothing given mean the same to set_timesteps
                assert mine == parameter.default or method == "set_timesteps", (method, key)


NOT_OURS = {  # the inside of Diffusers' solvers, and what belongs to its library
    "convert_model_output", "push_to_hub", "register_for_auto_class", "get_config_dict", "dummy",
    "extract_init_dict", "lower_order_nums", "model_outputs", "timestep_list", "last_sample",
    "derivatives", "ets", "counter", "cur_model_output", "cur_sample", "sample", "dt",
    "prev_derivative", "one", "log_sigmas", "sigmas_interpol", "sigmas_up", "sigmas_down",
    "mid_point_sigma", "noise_sampler", "noise_sampler_seed", "get_order_list", "alpha_t",
    "sigma_t", "lambda_t", "noisiest_timestep", "time_shift", "stretch_shift_to_terminal",
    "get_variables", "get_mult", "get_coefficients_fn", "predict_x0", "disable_corrector",
    "get_scalings_for_boundary_condition_discrete", "get_coefficients_exponential_negative",
    "get_coefficients_exponential_positive", "lagrange_polynomial_coefficient", "solver_p",
    "stochastic_adams_bashforth_update", "stochastic_adams_moulton_update", "variance_type",
}  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_public_attributes(name: str) -> None:
    theirs, ours = timed(name)
    wanted = {key for key in dir(theirs) if not key.startswith("_")} - NOT_OURS
    wanted = {key for key in wanted if not key.endswith("_update")}
    missing = {key for key in wanted if not hasattr(ours, key)}
    assert not missing


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("prepared", [False, True])
def test_arrays_are_tensors_with_the_same_numbers(name: str, prepared: bool) -> None:
    theirs, ours = timed(name) if prepared else pair(name)
    for key in ("timesteps", "sigmas", "betas", "alphas", "alphas_cumprod", "discrete_sigmas"):
        expected = getattr(theirs, key, None)
        if expected is None:
            continue
        found = getattr(ours, key)
        assert isinstance(found, torch.Tensor), key
        assert found is getattr(ours, key)
        assert found.dtype == expected.dtype, key
        close(found, expected, 1e-5 if name == "IPNDMScheduler" else 2e-6)
    first = getattr(theirs, "init_noise_sigma", 1.0)  # a flow's has none
    assert float(ours.init_noise_sigma) == pytest.approx(float(first), rel=1e-6)
    assert isinstance(ours.init_noise_sigma, type(first))
    if hasattr(theirs, "num_inference_steps"):
        assert ours.num_inference_steps == theirs.num_inference_steps
    if hasattr(theirs, "__len__"):
        assert len(ours) == len(theirs)
    assert ours.order == theirs.order


def test_arrays_can_be_set() -> None:
    scheduler = scheduler_class("ddpm")()
    scheduler.alphas_cumprod = scheduler.alphas_cumprod.double().float() * 0.5
    assert float(scheduler.alphas_cumprod[0]) == pytest.approx(0.5 * 0.9999)
    scheduler.set_timesteps(4)
    scheduler.timesteps = scheduler.timesteps[1:]
    assert len(scheduler.timesteps) == 3
    out = scheduler.step(sample(), scheduler.timesteps[0], sample(), torch.manual_seed(0))
    assert torch.isfinite(out.prev_sample).all()


# ── Steps ───────────────────────────────────────────────────────────────────────────────────────


def seeded(step: Any) -> dict[str, Any]:
    takes = "generator" in inspect.signature(step).parameters
    return {"generator": torch.Generator().manual_seed(7)} if takes else {}


def loop(scheduler: Any, dtype: Any = None, **given: Any) -> tuple[list[Any], list[Any]]:
    """What a loop of one's own looks like; the model is a toy."""
    torch.manual_seed(3)
    x = (sample() * getattr(scheduler, "init_noise_sigma", 1.0)).to(dtype or torch.float32)
    draws = seeded(scheduler.step)
    path, second = [], []
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(0)
    for t in calls(scheduler):
        seen = x
        if hasattr(scheduler, "scale_model_input"):
            seen = scheduler.scale_model_input(x, t)
        out = torch.tanh(seen.float() * 0.7 + 0.3 * float(t) / 1000).to(x.dtype)
        result = scheduler.step(out, t, x, **draws, **given)
        x = result.prev_sample
        path.append(x)
        second.append(result)
    return path, second


@pytest.mark.parametrize("name", PLAIN)
def test_a_loop_with_a_seed(name: str) -> None:
    if name in DRAWN_ELSEWHERE:
        pytest.skip("the noise is torchsde's in Diffusers; see test_schedulers")
    theirs, ours = timed(name)
    a, all_a = loop(theirs)
    b, all_b = loop(ours)
    for x, y, one, two in zip(a, b, all_a, all_b, strict=True):
        close(y, x)
        assert list(one.keys()) == list(two.keys())
        assert len(one.to_tuple()) == len(two.to_tuple())
        for left, right in zip(one.values(), two.values(), strict=True):
            close(right, left)
            assert right.dtype == left.dtype
        assert two[0] is two.prev_sample is two["prev_sample"]
        assert [id(v) for v in two[:]] == [id(v) for v in two.to_tuple()]
        assert isinstance(two, dict)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("name", PLAIN)
def test_half_precision(name: str, dtype: str) -> None:
    """The dtype at each step is Diffusers', and the numbers are, to a few roundings of it."""
    if name in DRAWN_ELSEWHERE:
        pytest.skip("the noise is torchsde's in Diffusers; see test_schedulers")
    half = getattr(torch, dtype)
    theirs, ours = timed(name)
    a, all_a = loop(theirs, half)
    b, all_b = loop(ours, half)
    for x, y in zip(a, b, strict=True):
        assert y.dtype == x.dtype
    for one, two in zip(all_a, all_b, strict=True):
        assert [v.dtype for v in two.values()] == [v.dtype for v in one.values()]
    # The same stream of noise; Diffusers rounds each product, here each step is rounded once.
    scale = max(float(x.float().abs().max()) for x in a)
    apart = max(float((x.float() - y.float()).abs().max()) for x, y in zip(a, b, strict=True))
    upwards = "Inverse" in name  # there a rounding grows with every step
    assert apart / scale < (32 if upwards else 8) * torch.finfo(half).eps


@pytest.mark.parametrize("name", PLAIN)
def test_return_dict(name: str) -> None:
    theirs, ours = timed(name)
    if name in DRAWN_ELSEWHERE:
        result = ours.step(sample(), calls(ours)[0], sample(), return_dict=False)
        assert type(result) is tuple
        return
    results = [
        s.step(sample(), calls(s)[0], sample(), return_dict=False, **seeded(s.step))
        for s in (theirs, ours)
    ]
    assert type(results[1]) is tuple
    assert len(results[0]) == len(results[1])


def fails(function: Any) -> type[Exception] | None:
    try:
        function()
    except Exception as exc:  # noqa: BLE001  which it is, is the question
        return type(exc)
    return None


@pytest.mark.parametrize("name", PLAIN)
def test_a_step_before_set_timesteps(name: str) -> None:
    theirs, ours = pair(name)

    def first(scheduler: Any) -> Any:
        t = scheduler.timesteps
        t = torch.tensor(999) if t is None else t[0]
        return scheduler.step(sample() * 0.1, t, sample(), **seeded(scheduler.step))

    if name in DRAWN_ELSEWHERE:
        assert fails(lambda: first(ours)) is (None if theirs.num_inference_steps else InputError)
        return
    refused = fails(lambda: first(theirs))
    theirs, ours = pair(name)
    if refused is None:
        close(first(ours).prev_sample, first(theirs).prev_sample)
    else:
        assert fails(lambda: first(ours)) is InputError
        assert issubclass(refused, ValueError | TypeError | AttributeError)


@pytest.mark.parametrize("name", NAMES)
def test_misuse(name: str) -> None:
    """Where Diffusers raises, so does this, with an error that its callers catch."""
    theirs, ours = timed(name)
    x = sample()
    misuses: list[Any] = [
        lambda s: s.set_timesteps(timesteps=[10, 20], num_inference_steps=2),
        lambda s: type(s)(beta_schedule="cubic"),
        lambda s: s.save_config(__file__),
        lambda s: s.from_config(None),
    ]
    if name in PLAIN and name not in DRAWN_ELSEWHERE:
        misuses.append(lambda s: s.step(x, 3, x) if s.timesteps.is_floating_point() else 1 / 0)
    for misuse in misuses:
        refused = fails(lambda m=misuse: m(theirs))
        if refused is None:
            continue
        assert fails(lambda m=misuse: m(ours)) is not None


# ── Noise ───────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("name", NAMES)
def test_add_noise(name: str) -> None:
    theirs, ours = timed(name)
    x, noise = sample(), sample().flip(0)
    method = next((m for m in ("add_noise", "scale_noise") if hasattr(theirs, m)), None)
    if method is None or name in ("RePaintScheduler", "FlowMatchHeunDiscreteScheduler"):
        return

    def noised(scheduler: Any, x: Any = x, noise: Any = noise) -> Any:
        t = calls(scheduler)[[4, 6]]
        if name == "ScoreSdeVeScheduler":
            t = torch.tensor([3, 8])
        arguments = (x, noise, t) if method == "add_noise" else (x, t, noise)
        return getattr(scheduler, method)(*arguments)

    close(noised(ours), noised(theirs), 1e-6)
    assert noised(ours, x.half(), noise.half()).dtype == torch.float16
    if hasattr(theirs, "set_begin_index"):
        for scheduler in (theirs, ours):
            scheduler.set_begin_index(2)
        close(noised(ours), noised(theirs), 1e-6)
        assert ours.begin_index == theirs.begin_index == 2
        assert ours.step_index is theirs.step_index is None
    if hasattr(theirs, "index_for_timestep") and torch.equal(ours.timesteps, theirs.timesteps):
        for mine, step in zip(calls(ours), calls(theirs), strict=True):
            assert ours.index_for_timestep(mine) == theirs.index_for_timestep(step)


@pytest.mark.parametrize("name", NAMES)
def test_scale_model_input(name: str) -> None:
    theirs, ours = timed(name)
    if not hasattr(theirs, "scale_model_input"):
        return
    a, b = (s.scale_model_input(sample(), calls(s)[4]) for s in (theirs, ours))
    close(b, a, 1e-6)
    assert getattr(ours, "step_index", None) == getattr(theirs, "step_index", None) or (
        not hasattr(theirs, "step_index")
    )


@pytest.mark.parametrize("name", ["ddim", "ddim-cogvideox", "tcd"])
def test_variance(name: str) -> None:
    ours = scheduler_class(name)()
    theirs = oracle(type(ours).__name__)()
    for steps in ((0, 0), (420, 400), (980, 960), (487, 486), (999, 998)):
        close(ours._get_variance(*steps), theirs._get_variance(*steps), 1e-6)


@pytest.mark.parametrize("kind", ["fixed_small", "fixed_small_log", "fixed_large"])
def test_ddpm_variance_and_previous_timestep(kind: str) -> None:
    theirs, ours = pair("DDPMScheduler", variance_type=kind)
    for t in (0, 487, 999):
        close(ours._get_variance(t), theirs._get_variance(t), 1e-6)
        assert int(ours.previous_timestep(t)) == int(theirs.previous_timestep(t))
    own = [100, 87, 50, 1, 0]
    for scheduler in (theirs, ours):
        scheduler.set_timesteps(timesteps=own)
    for t in ours.timesteps:
        assert int(ours.previous_timestep(t)) == int(theirs.previous_timestep(t))


@pytest.mark.parametrize("skip", [False, True])
def test_pndm_in_its_parts(skip: bool) -> None:
    theirs, ours = pair("PNDMScheduler", skip_prk_steps=skip)
    with pytest.raises(ValueError, match="set_timesteps"):
        ours.step_plms(sample(), 1, sample())
    a = b = sample()
    for scheduler in (theirs, ours):
        scheduler.set_timesteps(10)
    np.testing.assert_array_equal(ours.prk_timesteps, theirs.prk_timesteps)
    np.testing.assert_array_equal(ours.plms_timesteps, theirs.plms_timesteps)
    if not skip:
        with pytest.raises(ValueError, match="before"):
            ours.step_plms(sample(), 1, sample())
    for t in theirs.prk_timesteps:
        a = theirs.step_prk(a * 0.3, t, a).prev_sample
        b = ours.step_prk(b * 0.3, t, b).prev_sample
    for t in theirs.plms_timesteps:
        a = theirs.step_plms(a * 0.3, t, a).prev_sample
        b = ours.step_plms(b * 0.3, t, b).prev_sample
    close(b, a)


# ── Configs and files ───────────────────────────────────────────────────────────────────────────


def plain(config: Any) -> dict[str, Any]:
    return {key: value for key, value in dict(config).items() if not key.startswith("_")}


@pytest.mark.parametrize("name", NAMES)
def test_configs_go_both_ways(name: str) -> None:
    theirs, ours = pair(name)
    assert plain(ours.config) == plain(theirs.config)
    defaults = [set(dict(s.config)["_use_default_values"]) for s in (theirs, ours)]
    assert defaults[0] - {"kwargs"} == defaults[1]
    there = oracle(name).from_config(ours.config)
    back = scheduler_class(name).from_config(theirs.config)
    assert plain(there.config) == plain(back.config) == plain(ours.config)


@pytest.mark.parametrize("name", NAMES)
def test_save_and_load(name: str, tmp_path: Any) -> None:
    theirs, ours = pair(name, num_train_timesteps=500)
    for save in (ours.save_config, ours.save_pretrained):
        save(tmp_path / "a")
        again = scheduler_class(name).from_pretrained(tmp_path, subfolder="a")
        before = {k: v for k, v in dict(ours.config).items() if k != "_use_default_values"}
        assert before == again.config
        assert plain(oracle(name).from_pretrained(tmp_path / "a").config) == plain(again.config)
    theirs.save_config(tmp_path / "b")
    mine = scheduler_class(name).from_pretrained(tmp_path / "b")
    assert plain(mine.config) == plain(ours.config)
    assert json.loads(ours.to_json_string())["_class_name"] == name
    found, rest = scheduler_class(name).from_pretrained(
        tmp_path / "a", return_unused_kwargs=True, num_train_timesteps=400, another=3
    )
    assert found.config.num_train_timesteps == 400
    assert rest["another"] == 3
    loaded = scheduler_class(name).load_config(tmp_path / "a")
    assert loaded["num_train_timesteps"] == 500


@pytest.mark.parametrize("name", NAMES)
def test_compatibles(name: str) -> None:
    theirs, ours = pair(name)
    expected = {c.__name__ for c in theirs.compatibles} | {name}
    if any(known in expected for known in ("DDIMScheduler",)):
        expected |= {"DPMSolverSDEScheduler"}  # hidden where torchsde is not installed
    assert {c.__name__ for c in ours.compatibles} == expected & set(SCHEDULERS)
    for other in ours.compatibles:
        back = scheduler_class(name).from_config(other.from_config(ours.config).config)
        assert plain(back.config).items() >= plain(ours.config).items()


@pytest.mark.parametrize("name", NAMES)
def test_config_entries_as_attributes(name: str) -> None:
    scheduler = scheduler_class(name)()
    scheduler.dummy_attribute = 5
    scheduler.register_to_config(test_attribute=5)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert scheduler.dummy_attribute == 5
        assert scheduler.config.test_attribute == 5
    with pytest.warns(FutureWarning, match=r"config\.test_attribute"):
        assert scheduler.test_attribute == 5
    with pytest.raises(AttributeError) as caught:
        _ = scheduler.does_not_exist
    assert str(caught.value) == f"'{name}' object has no attribute 'does_not_exist'"


@pytest.mark.parametrize("name", NAMES)
def test_deprecated_arguments(name: str) -> None:
    theirs, ours = oracle(name), scheduler_class(name)
    assert ours._deprecated_kwargs == theirs._deprecated_kwargs
    takes_more = "kwargs" in inspect.signature(ours.__init__).parameters
    assert takes_more is bool(ours._deprecated_kwargs)
    if ours._deprecated_kwargs:
        with pytest.warns(FutureWarning, match="set_alpha_to_one"):
            made = ours(set_alpha_to_zero=False)
        assert made.config.set_alpha_to_one is False
        assert ours.from_config({"set_alpha_to_zero": False}).config.set_alpha_to_one is False


@pytest.mark.parametrize("name", NAMES)
def test_trained_betas(name: str, tmp_path: Any) -> None:
    cls = scheduler_class(name)
    if "trained_betas" not in inspect.signature(cls.__init__).parameters:
        return
    betas = np.array([0.1, 0.3])
    if name == "IPNDMScheduler":  # one for each step and one for the end
        ours = cls(num_train_timesteps=1, trained_betas=betas)
    else:
        ours = cls(trained_betas=betas)
    ours.save_pretrained(tmp_path)
    assert ours.betas.tolist() == cls.from_pretrained(tmp_path).betas.tolist()


@pytest.mark.parametrize("name", NAMES)
def test_copies(name: str) -> None:
    _, ours = timed(name)
    _ = ours.timesteps
    for other in (copy.deepcopy(ours), pickle.loads(pickle.dumps(ours))):
        assert other.config == ours.config
        assert torch.equal(other.timesteps, ours.timesteps)
    assert name in repr(ours)


@pytest.mark.parametrize("name", NAMES)
def test_settings_by_position(name: str) -> None:
    fields = [k for k in inspect.signature(oracle(name).__init__).parameters if k != "kwargs"][1:4]
    values = [oracle(name)().config[key] for key in fields]
    theirs, ours = oracle(name)(*values), scheduler_class(name)(*values)
    assert plain(theirs.config) == plain(ours.config)


@pytest.mark.parametrize("name", NAMES)
def test_device(name: str) -> None:
    """A tensor's device is kept: ``meta`` stands for one that is not the processor's."""
    ours = scheduler_class(name)()
    ours.set_timesteps(4, device="meta", **steps_of(name))
    assert ours.timesteps.device.type == "meta"
    ours.set_timesteps(4, device=torch.device("cpu"), **steps_of(name))
    assert ours.timesteps.device.type == "cpu"
