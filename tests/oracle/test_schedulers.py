"""The schedules against Diffusers': whole trajectories of a non-linear toy model, step by step."""

from __future__ import annotations

import contextlib
import importlib
import inspect
import itertools
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")

from tests.oracle.scheduler_classes import oracle

from perfuse.errors import InputError
from perfuse.schedulers import SCHEDULERS, scheduler_class

TOLERANCE = 1e-5
COUNTS = (1, 2, 3, 5, 8, 13, 20)
SHAPE = (2, 3, 3, 2)
SD = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
SHORT = {
    "ddpm": "DDPMScheduler",
    "ddim": "DDIMScheduler",
    "pndm": "PNDMScheduler",
    "euler": "EulerDiscreteScheduler",
    "ancestral": "EulerAncestralDiscreteScheduler",
    "dpm": "DPMSolverMultistepScheduler",
    "unipc": "UniPCMultistepScheduler",
    "lcm": "LCMScheduler",
    "flow": "FlowMatchEulerDiscreteScheduler",
    "heun": "HeunDiscreteScheduler",
    "kdpm2": "KDPM2DiscreteScheduler",
    "kdpm2a": "KDPM2AncestralDiscreteScheduler",
    "lms": "LMSDiscreteScheduler",
    "single": "DPMSolverSinglestepScheduler",
    "sde": "DPMSolverSDEScheduler",
    "deis": "DEISMultistepScheduler",
    "tcd": "TCDScheduler",
    "ipndm": "IPNDMScheduler",
    "sa": "SASolverScheduler",
    "flowheun": "FlowMatchHeunDiscreteScheduler",
    "flowlcm": "FlowMatchLCMScheduler",
    "edm": "EDMEulerScheduler",
    "edmdpm": "EDMDPMSolverMultistepScheduler",
    "scm": "SCMScheduler",
    "ddimup": "DDIMInverseScheduler",
    "dpmup": "DPMSolverMultistepInverseScheduler",
    "cosine": "CosineDPMSolverMultistepScheduler",
    "videoddim": "CogVideoXDDIMScheduler",
}
ELSEWHERE = {"CogVideoXDPMScheduler", "RePaintScheduler", "ScoreSdeVeScheduler"}
"""Those whose loop is another; each has a test of its own below."""
THROUGH_LOGS = {  # or through sines: their timesteps are rounded by the maths library at hand
    "KDPM2DiscreteScheduler",
    "KDPM2AncestralDiscreteScheduler",
    "DPMSolverSDEScheduler",
    "IPNDMScheduler",
    "EDMEulerScheduler",
    "EDMDPMSolverMultistepScheduler",
    "CosineDPMSolverMultistepScheduler",
}
WORST: dict[str, float] = {}
NAN: list[tuple[str, str, int | None, str]] = []
ILL: list[tuple[str, str, int | None, float, float]] = []


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    """What `Theirs` puts into Diffusers' modules is taken out again: other files draw with them."""
    with pytest.MonkeyPatch.context() as Theirs.patch:
        yield


@pytest.fixture(autouse=True)
def quiet() -> Any:
    diffusers.utils.logging.set_verbosity_error()
    torch.set_num_threads(1)
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        yield
    diffusers.utils.logging.set_verbosity_warning()


def grid(**options: Any) -> list[dict[str, Any]]:
    """Every combination; an option that is a dict is merged into the config."""
    made = []
    for values in itertools.product(*options.values()):
        config: dict[str, Any] = {}
        for key, value in zip(options, values, strict=True):
            config.update(value if isinstance(value, dict) else {key: value})
        made.append(config)
    return made


@contextlib.contextmanager
def exactly() -> Iterator[None]:
    """torch without two losses: a square root off by 0.74 ulp, and a cast down to float32.

    The root is MKL's. One ulp of alpha is nothing, except where a schedule divides by almost zero.
    The cast is the one that some schedulers begin a step with; here float64 stays float64.
    """
    root, power, function, to = (
        torch.Tensor.sqrt,
        torch.Tensor.__pow__,
        torch.sqrt,
        torch.Tensor.to,
    )

    def exact(x: Any) -> Any:
        return torch.from_numpy(np.asarray(np.sqrt(x.numpy())))

    def exact_power(x: Any, exponent: Any) -> Any:
        return exact(x) if isinstance(exponent, float) and exponent == 0.5 else power(x, exponent)

    def stay(x: Any, *args: Any, **kwargs: Any) -> Any:
        return x if args == (torch.float32,) and not kwargs else to(x, *args, **kwargs)

    torch.Tensor.sqrt, torch.Tensor.__pow__, torch.sqrt = exact, exact_power, exact
    torch.Tensor.to = stay
    try:
        yield
    finally:
        torch.Tensor.sqrt, torch.Tensor.__pow__, torch.sqrt = root, power, function
        torch.Tensor.to = to


def model(x: np.ndarray, t: float, channels: int = SHAPE[1]) -> np.ndarray:
    out = np.tanh(x * 0.7 + 0.3 * t / 1000)
    out = out if channels == SHAPE[1] else np.concatenate([out, np.cos(3 * x)], 1)
    return out.astype(x.dtype)


def apart(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.abs(a - b).max() / np.abs(b).max())


class Brownian:
    """What Diffusers has from torchsde, from our noise: a path that is drawn where it is asked."""

    def __init__(self, draw: Any) -> None:
        self.draw, self.path = draw, {}

    def __call__(self, sigma: Any, sigma_next: Any) -> Any:
        start, end = float(sigma), float(sigma_next)
        self.path = self.path or {start: 0.0}
        lowest = min(self.path)
        if end >= start:  # torchsde's path has no noise to give, and Diffusers divides it by zero
            return torch.from_numpy(self.draw()) * float("nan")
        if end < lowest:
            fresh = torch.from_numpy(self.draw()) * (lowest - end) ** 0.5
            self.path[end] = self.path[lowest] + fresh
        return (self.path[end] - self.path[start]) / (start - end) ** 0.5


def model_calls(scheduler: Any) -> Any:
    """The timesteps at which the model is called: SCM lists one more, where the last step ends."""
    scm = type(scheduler).__name__ == "SCMScheduler"
    return scheduler.timesteps[:-1] if scm else scheduler.timesteps


class Theirs:
    """A Diffusers scheduler with our noise in place of its own."""

    patch: pytest.MonkeyPatch

    def __init__(self, name: str, config: dict[str, Any], noise: Any) -> None:
        self.scheduler = oracle(name)(**config)
        module = importlib.import_module(type(self.scheduler).__module__)
        self.draws = 0

        def drawn(shape: Any, dtype: Any = None, **_: Any) -> Any:
            self.draws += 1
            drawn = torch.from_numpy(noise(self.draws - 1))
            return drawn.to(dtype) if dtype in (torch.float16, torch.bfloat16) else drawn

        if hasattr(module, "randn_tensor"):
            self.patch.setattr(module, "randn_tensor", drawn)
        if hasattr(module, "BrownianTreeNoiseSampler"):
            self.patch.setattr(
                module,
                "BrownianTreeNoiseSampler",
                lambda *_, **__: Brownian(lambda: drawn(None).numpy()),
            )

    def run(self, x: np.ndarray, channels: int, start: int, **step: Any) -> list[np.ndarray]:
        s = self.scheduler
        sample, path = torch.from_numpy(x) * getattr(s, "init_noise_sigma", 1.0), []
        if hasattr(s, "set_begin_index"):  # else it may start at the second of two timesteps
            s.set_begin_index(start)
        elif type(s).__name__ == "DPMSolverMultistepInverseScheduler":
            s._step_index = start
        for t in model_calls(s)[start:]:
            scaled = s.scale_model_input(sample, t) if hasattr(s, "scale_model_input") else sample
            out = torch.from_numpy(model(scaled.numpy(), float(t), channels))
            sample = s.step(out, t, sample, **step).prev_sample
            path.append(sample.numpy())
        return path


def compare(
    name: str,
    config: dict[str, Any],
    count: int | None,
    *,
    times: dict[str, Any] | None = None,
    eta: float | None = None,
    channels: int = SHAPE[1],
    start: int = 0,
    step: dict[str, Any] | None = None,
) -> None:
    rng = np.random.default_rng(0)
    x = rng.standard_normal(SHAPE).astype(np.float32)
    bank = rng.standard_normal((120, *SHAPE)).astype(np.float32)
    step = {**(step or {}), **({} if eta is None else {"eta": eta})}
    times = times or {}

    def run(dtype: Any) -> tuple[Any, list[np.ndarray]]:
        theirs = Theirs(name, config, lambda k: bank[k].astype(dtype))
        theirs.scheduler.set_timesteps(count, **times)
        return theirs, theirs.run(x.astype(dtype), channels, start, **step)

    try:
        theirs, path = run(np.float32)
    except Exception:  # noqa: BLE001  whatever it raises, ours is to say so
        with pytest.raises(InputError):
            scheduler_class(name)(**config).schedule(count, eta=eta, begin=start, **times)
        return
    finite = all(np.isfinite(sample).all() for sample in path)
    ours = scheduler_class(name)(**config)
    try:
        schedule = ours.schedule(count, eta=eta, begin=start, **times)
    except InputError:
        assert not finite
        NAN.append((name, str(config), count, "refused"))
        return
    with exactly():
        rounded = oracle(name)(**config)
        rounded.set_timesteps(count, **times)
    if finite:
        check_arrays(ours, schedule, rounded, count, times, start)
    state, draws, mine = schedule.start(x * np.float32(schedule.init_noise_sigma)), 0, []
    for i, t in enumerate(schedule.timesteps):
        out = model(schedule.scale_input(i, state[0]), float(t), channels)
        noise = None
        if schedule.draws[i]:
            noise, draws = bank[draws], draws + 1
        state = schedule.advance(i, state, out, noise)
        assert all(slot.dtype == np.float32 for slot in state)
        mine.append(state[0])
    assert draws == theirs.draws  # later seeds would shift
    assert all(np.isfinite(sample).all() for sample in mine)
    if not finite:
        NAN.append((name, str(config), count, "finite"))
        return
    worst = max(apart(a, b) for a, b in zip(mine, path, strict=True))
    if worst > TOLERANCE:
        # Too far from float32 Diffusers: then Diffusers must be far from itself in float64 too,
        # and ours no worse than that by more than the order of three roundings for its one.
        with exactly():
            _, exact = run(np.float64)
        theirs_off = max(apart(a, b) for a, b in zip(path, exact, strict=True))
        worst = max(apart(a, b) for a, b in zip(mine, exact, strict=True))
        assert worst <= max(TOLERANCE, 3 * theirs_off), f"n={count}: {worst:.2e}, {theirs_off:.2e}"
        ILL.append((name, str(config), count, worst, theirs_off))
    else:
        hard = config.get("rescale_betas_zero_snr") or "cap" in config.get("beta_schedule", "")
        key = name + (", zero SNR or cosine betas" if hard else "")
        WORST[key] = max(WORST.get(key, 0.0), worst)


def check_arrays(
    ours: Any, schedule: Any, theirs: Any, count: int | None, times: dict[str, Any], start: int
) -> None:
    expected = theirs.timesteps.numpy()
    ours.set_timesteps(count, **times)
    shown = ours.timesteps.numpy()
    assert shown.dtype == expected.dtype
    calls = model_calls(ours).numpy()[start:]
    np.testing.assert_array_equal(schedule.timesteps, calls.astype(np.float32))
    config = theirs.config
    if (
        config.get("timestep_type") == "continuous"
        or config.get("interpolation_type") == "log_linear"
        or type(theirs).__name__ in THROUGH_LOGS
    ):  # through torch's log and exp, which round differently from numpy's
        np.testing.assert_allclose(shown, expected, rtol=1e-6, atol=1e-4)
        if hasattr(theirs, "sigmas"):
            np.testing.assert_allclose(ours.sigmas, theirs.sigmas.numpy(), rtol=1e-6)
        return
    np.testing.assert_array_equal(shown, expected)
    if hasattr(theirs, "sigmas"):
        np.testing.assert_allclose(ours.sigmas, theirs.sigmas.numpy(), rtol=3e-7)
    if hasattr(theirs, "init_noise_sigma"):
        first = float(theirs.init_noise_sigma)
        assert schedule.init_noise_sigma == pytest.approx(first, rel=2e-7)
        assert ours.init_noise_sigma == schedule.init_noise_sigma


def named(config: dict[str, Any]) -> str:
    return ",".join(f"{k[:12]}={v}" for k, v in config.items() if k[:6] != "beta_s") or "default"


SPACINGS = ("linspace", "leading", "trailing")
BETAS = ({"beta_schedule": "linear"}, SD, {"beta_schedule": "squaredcos_cap_v2"})
PREDICTIONS = ("epsilon", "sample", "v_prediction")
COMMON = {
    "prediction_type": PREDICTIONS,
    "timestep_spacing": SPACINGS,
    "steps_offset": (0, 1),
    "betas": BETAS,
}
SNR = {"rescale_betas_zero_snr": (False, True)}
DESCENTS = ({}, *({f"use_{d}_sigmas": True} for d in ("karras", "exponential", "beta")))

CASES: list[tuple[str, dict[str, Any]]] = [
    *(("ddpm", c) for c in grid(**COMMON, **SNR, clip_sample=(False,))),
    *(("ddpm", c) for c in grid(prediction_type=PREDICTIONS, betas=BETAS, **SNR)),
    *(("ddim", c) for c in grid(**COMMON, **SNR, clip_sample=(False,))),
    *(("ddim", c) for c in grid(**COMMON, set_alpha_to_one=(False,), clip_sample_range=(0.7,))),
    *(
        ("pndm", c)
        for c in grid(**{**COMMON, "prediction_type": ("epsilon", "v_prediction")})
        for c in ({**c, "skip_prk_steps": True}, {**c, "set_alpha_to_one": True})
    ),
    *(("euler", c) for c in grid(**COMMON, **SNR)),
    *(
        ("euler", c)
        for c in grid(
            descent=DESCENTS,
            interpolation_type=("linear", "log_linear"),
            final_sigmas_type=("zero", "sigma_min"),
            timestep_type=("discrete", "continuous"),
            prediction_type=("epsilon", "v_prediction"),
            betas=(SD,),
        )
    ),
    ("euler", {**SD, "use_karras_sigmas": True, "sigma_min": 0.05, "sigma_max": 20.0}),
    *(
        ("ancestral", c)
        for c in grid(**{**COMMON, "prediction_type": ("epsilon", "v_prediction")}, **SNR)
    ),
    *(("dpm", c) for c in grid(**COMMON)),
    *(
        ("dpm", c)
        for c in grid(
            algorithm_type=("dpmsolver", "dpmsolver++", "sde-dpmsolver", "sde-dpmsolver++"),
            solver_order=(1, 2, 3),
            solver_type=("midpoint", "heun"),
            final_sigmas_type=("zero", "sigma_min"),
            prediction_type=PREDICTIONS,
            betas=(SD,),
        )
    ),
    *(
        ("dpm", c)
        for c in grid(
            descent=(*DESCENTS, {"use_lu_lambdas": True}),
            betas=BETAS[1:],
            solver_order=(2, 3),
            end=({}, {"euler_at_final": True}, {"lower_order_final": False}),
            final_sigmas_type=("zero", "sigma_min"),
        )
    ),
    *(
        ("dpm", c)
        for c in grid(
            prediction_type=("flow_prediction", "epsilon"),
            use_flow_sigmas=(True,),
            flow_shift=(1.0, 3.0),
            final_sigmas_type=("zero", "sigma_min"),
            algorithm_type=("dpmsolver++", "sde-dpmsolver++"),
        )
    ),
    *(("dpm", c) for c in grid(timestep_spacing=SPACINGS, lambda_min_clipped=(-5.1,), b=BETAS)),
    ("dpm", {**SD, "rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}),
    ("dpm", {**SD, "algorithm_type": "dpmsolver++", "solver_type": "logrho"}),
    *(("unipc", c) for c in grid(**COMMON)),
    *(
        ("unipc", c)
        for c in grid(
            predict_x0=(True, False),
            solver_order=(1, 2, 3),
            solver_type=("bh1", "bh2"),
            final_sigmas_type=("zero", "sigma_min"),
            prediction_type=PREDICTIONS,
            betas=(SD,),
        )
    ),
    *(
        ("unipc", c)
        for c in grid(
            descent=DESCENTS,
            betas=BETAS[1:],
            solver_order=(2, 3),
            end=({}, {"disable_corrector": [0, 2]}, {"lower_order_final": False}),
            final_sigmas_type=("zero", "sigma_min"),
        )
    ),
    *(
        ("unipc", c)
        for c in grid(
            prediction_type=("flow_prediction", "epsilon"),
            use_flow_sigmas=(True,),
            flow_shift=(1.0, 3.0),
            final_sigmas_type=("zero", "sigma_min"),
            more=({}, {"use_karras_sigmas": True}, {"shift_terminal": 0.02}),
        )
    ),
    *(("lcm", c) for c in grid(prediction_type=PREDICTIONS, betas=BETAS, **SNR)),
    *(("lcm", c) for c in grid(clip_sample=(True,), original_inference_steps=(50, 100))),
    *(
        ("flow", c)
        for c in grid(
            shift=(1.0, 3.0),
            descent=DESCENTS,
            shift_terminal=(None, 0.02),
            invert_sigmas=(False, True),
            stochastic_sampling=(False, True),
        )
    ),
    *(
        (short, {**SD, "thresholding": True, "sample_max_value": 1.3, **more})
        for short in ("ddpm", "ddim", "dpm", "unipc", "lcm")
        for more in ({}, {"prediction_type": "v_prediction"})
    ),
    (
        "dpm",
        {
            **SD,
            "thresholding": True,
            "algorithm_type": "dpmsolver",
            "final_sigmas_type": "sigma_min",
        },
    ),
    *(
        ("ddpm", {"variance_type": v, **more})
        for v in ("fixed_small", "fixed_small_log", "fixed_large", "fixed_large_log")
        for more in ({}, SD)
    ),
    ("ddpm", {"beta_schedule": "sigmoid"}),
    ("ddpm", {"beta_schedule": "laplace"}),
    ("ddim", {"trained_betas": list(np.linspace(1e-4, 0.03, 600)), "num_train_timesteps": 600}),
]


VP = {"prediction_type": ("epsilon", "v_prediction"), "timestep_spacing": SPACINGS}
CASES += [
    *(("heun", c) for c in grid(**COMMON)),
    *(("heun", c) for c in grid(descent=DESCENTS, b=BETAS, clip_sample=(False, True))),
    ("heun", {"beta_schedule": "exp"}),
    # Diffusers makes KDPM2 in 0.2 s: few of them.
    *((k, c) for k in ("kdpm2", "kdpm2a") for c in grid(**VP, b=(SD,))),
    *((k, c) for k in ("kdpm2", "kdpm2a") for c in grid(descent=DESCENTS, b=BETAS[1:])),
    # Cosine betas leave 1e-4 of the signal at the top: where the noise is what a method goes on
    # with, one unit in the last place of an exponential decides there.
    *(("sde", c) for c in grid(**VP, steps_offset=(0, 1), b=BETAS[:2])),
    *(("sde", c) for c in grid(descent=DESCENTS, b=BETAS[:2])),
    *(("lms", c) for c in grid(**COMMON)),
    *(("lms", c) for c in grid(descent=DESCENTS, b=BETAS)),
    *(
        ("single", c)
        for c in grid(
            algorithm_type=("dpmsolver", "dpmsolver++", "sde-dpmsolver++"),
            solver_order=(1, 2, 3),
            solver_type=("midpoint", "heun"),
            final_sigmas_type=("zero", "sigma_min"),
            lower_order_final=(False, True),
            prediction_type=PREDICTIONS,
            betas=(SD,),
        )
    ),
    *(("single", c) for c in grid(descent=DESCENTS, b=BETAS[1:], solver_order=(2, 3))),
    *(("single", {"use_flow_sigmas": True, "flow_shift": f}) for f in (1.0, 3.0)),
    ("single", {**SD, "thresholding": True}),
    ("single", {"lambda_min_clipped": -5.1}),
    *(("deis", c) for c in grid(**{**COMMON, "betas": BETAS[:2]}, solver_order=(1, 2, 3))),
    *(("deis", c) for c in grid(descent=DESCENTS, b=(SD,), lower_order_final=(True, False))),
    *(("deis", {"use_flow_sigmas": True, "solver_order": n}) for n in (1, 2, 3)),
    ("deis", {**SD, "thresholding": True}),
    *(("tcd", c) for c in grid(prediction_type=PREDICTIONS, betas=BETAS, **SNR)),
    ("ipndm", {}),
    *(
        ("sa", c)
        for c in grid(
            algorithm_type=("data_prediction", "noise_prediction"),
            predictor_order=(1, 2, 3),
            corrector_order=(1, 2, 3),
            lower_order_final=(True, False),
            betas=(SD,),
        )
    ),
    *(("sa", c) for c in grid(**COMMON)),
    *(("sa", c) for c in grid(descent=DESCENTS, b=(SD,))),
    *(("sa", {"use_flow_sigmas": True, "prediction_type": "flow_prediction"}) for _ in (1, 2)),
    *(("flowheun", {"shift": shift}) for shift in (1.0, 3.0)),
    *(
        ("flowlcm", c)
        for c in grid(shift=(1.0, 3.0), descent=DESCENTS, invert_sigmas=(False, True))
    ),
    *(
        (k, c)
        for k in ("edm", "edmdpm", "cosine")
        for c in grid(
            prediction_type=("epsilon", "v_prediction"),
            sigma_schedule=("karras", "exponential"),
            final_sigmas_type=("zero", "sigma_min"),
            more=({},) if k == "edm" else ({}, {"solver_order": 1}, {"solver_type": "heun"}),
        )
    ),
    *(
        ("edmdpm", c)
        for c in grid(solver_order=(1, 2, 3), algorithm_type=("dpmsolver++", "sde-dpmsolver++"))
    ),
    ("scm", {}),
    ("scm", {"sigma_data": 1.0}),
    *(
        ("ddimup", c)
        for c in grid(
            prediction_type=PREDICTIONS,
            timestep_spacing=("leading", "trailing"),
            clip_sample=(False, True),
            betas=BETAS,
            **SNR,
        )
    ),
    *(
        ("dpmup", c)
        for c in grid(
            algorithm_type=("dpmsolver", "dpmsolver++", "sde-dpmsolver", "sde-dpmsolver++"),
            solver_order=(1, 2, 3),
            solver_type=("midpoint", "heun"),
            timestep_spacing=SPACINGS,
            betas=(SD,),
        )
    ),
    *(("dpmup", c) for c in grid(descent=DESCENTS, b=(SD,))),
    *(("videoddim", c) for c in grid(**COMMON, **SNR)),
]


def count_for(i: int, short: str) -> int:
    """The number of steps of a case; its neighbours have others."""
    count = COUNTS[i % len(COUNTS)]
    return max(count, 3) if short == "sa" else count


def times_for(short: str, count: int) -> dict[str, Any]:
    return {"intermediate_timesteps": None} if short == "scm" and count != 2 else {}


def where_pairs_meet(cases: list[tuple[str, dict[str, Any]]]) -> set[int]:
    """A part of the grid in which any two settings of a class that meet in it meet at least once."""
    seen: set[tuple[Any, ...]] = set()
    chosen = set()
    for i in np.random.default_rng(0).permutation(len(cases)):
        short, config = cases[i]
        settings = [("", short), *((key, str(value)) for key, value in config.items())]
        pairs = {(short, *pair) for pair in itertools.combinations_with_replacement(settings, 2)}
        if pairs - seen:
            seen |= pairs
            chosen.add(int(i))
    return chosen


USUAL = where_pairs_meet(CASES)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("i", "short", "config"),
    [
        pytest.param(
            *(i, short, config),
            id=f"{short}-{i}-{named(config)}",
            marks=[] if i in USUAL else pytest.mark.exhaustive,
        )
        for i, (short, config) in enumerate(CASES)
    ],
)
def test_trajectory(i: int, short: str, config: dict[str, Any]) -> None:
    count = count_for(i, short)
    compare(SHORT[short], config, count, times=times_for(short, count))


def test_the_grid_has_every_class() -> None:
    assert {SHORT[short] for short, _ in CASES} | ELSEWHERE == set(SCHEDULERS)
    assert len(CASES) >= 1500


@pytest.mark.parametrize("eta", [0.0, 0.3, 1.0])
def test_tcd_with_noise(eta: float) -> None:
    for prediction, count in itertools.product(PREDICTIONS, (1, 4, 8)):
        compare("TCDScheduler", {"prediction_type": prediction}, count, eta=eta)
    for times in ({"strength": 0.6}, {"original_inference_steps": 40}):
        compare("TCDScheduler", {}, 4, times=times, eta=eta)


@pytest.mark.parametrize("eta", [0.3, 1.0])
@pytest.mark.parametrize("clip", [False, True])
def test_ddim_with_noise(eta: float, clip: bool) -> None:
    for prediction, count in itertools.product(PREDICTIONS, COUNTS):
        config = {**SD, "prediction_type": prediction, "clip_sample": clip}
        compare("DDIMScheduler", config, count, eta=eta)


@pytest.mark.parametrize("kind", ["learned", "learned_range"])
def test_learned_variance(kind: str) -> None:
    for count in COUNTS:
        config: dict[str, Any] = {**SD, "variance_type": kind}
        if kind == "learned_range":  # cos is negative somewhere, and "learned" takes its root
            compare("DDPMScheduler", config, count, channels=2 * SHAPE[1])
        config = {**SD, "variance_type": kind}
        compare("DPMSolverMultistepScheduler", config, count, channels=2 * SHAPE[1])


@pytest.mark.parametrize(
    ("short", "config"),
    [
        ("ddpm", {}),
        ("ddim", SD),
        ("pndm", {**SD, "skip_prk_steps": True}),
        ("pndm", {**SD, "skip_prk_steps": True, "steps_offset": 1}),
        ("euler", {**SD, "use_karras_sigmas": True}),
        ("ancestral", SD),
        ("dpm", {**SD, "solver_order": 3}),
        ("dpm", {**SD, "use_karras_sigmas": True}),
        ("unipc", {**SD, "solver_order": 3}),
        ("lcm", {}),
        ("flow", {"shift": 3.0}),
        ("heun", SD),
        ("kdpm2", SD),
        ("kdpm2a", {**SD, "use_karras_sigmas": True}),
        ("lms", SD),
        ("single", {**SD, "solver_order": 3}),
        ("sde", SD),
        ("deis", {**SD, "solver_order": 3}),
        ("tcd", {}),
        ("ipndm", {}),
        ("sa", SD),
        ("flowheun", {"shift": 3.0}),
        ("flowlcm", {}),
        ("edm", {}),
        ("edmdpm", {"solver_order": 3}),
        ("cosine", {}),
        ("videoddim", {}),
    ],
)
def test_start_in_the_middle(short: str, config: dict[str, Any]) -> None:
    order = scheduler_class(SHORT[short]).order
    for count in (8,) if order == 2 else (8, 20):
        for start in (order, 3 * order, (count - 1) * order):
            compare(SHORT[short], config, count, start=start)


@pytest.mark.parametrize(
    ("short", "config", "times"),
    [
        ("ddpm", {}, {"timesteps": [999, 700, 432, 12]}),
        ("ddpm", {}, {"timesteps": [999, 999, 3]}),
        ("ddpm", {}, {"timesteps": [1000, 3]}),
        ("euler", SD, {"timesteps": [999, 845, 730, 587, 443, 310, 193, 116, 53, 13]}),
        ("euler", SD, {"sigmas": [14.615, 6.315, 3.771, 2.181, 0.555, 0.0]}),
        ("euler", {**SD, "use_karras_sigmas": True}, {"timesteps": [999, 3]}),
        ("dpm", SD, {"timesteps": [999, 845, 730, 587, 443, 310, 193, 116, 53, 13]}),
        ("lcm", {}, {"timesteps": [999, 759, 499, 259]}),
        ("lcm", {}, {"timesteps": [999, 759, 499, 259], "strength": 0.6}),
        ("flow", {"shift": 3.0}, {"sigmas": list(np.linspace(1, 1 / 28, 28))}),
        ("flow", {"shift": 3.0}, {"timesteps": [1000.0, 800.0, 333.3]}),
        ("flow", {}, {"timesteps": [1000.0, 800.0], "sigmas": [1.0, 0.7]}),
        ("flow", {}, {"timesteps": [1000.0, 800.0], "sigmas": [1.0]}),
        ("unipc", {"use_flow_sigmas": True}, {"sigmas": np.linspace(1, 0.1, 7)}),
        ("unipc", {}, {"sigmas": np.linspace(1, 0.1, 7)}),
    ],
)
def test_own_times(short: str, config: dict[str, Any], times: dict[str, Any]) -> None:
    compare(SHORT[short], config, None, times=times)


@pytest.mark.parametrize("kind", ["exponential", "linear"])
def test_dynamic_shifting(kind: str) -> None:
    config: dict[str, Any] = {"use_dynamic_shifting": True, "time_shift_type": kind}
    for count in COUNTS:
        compare(SHORT["flow"], config, count, times={"mu": 0.8})
        sigmas = {"mu": 0.8, "sigmas": np.linspace(1, 1 / count, count)}
        compare(SHORT["flow"], {**config, "shift_terminal": 0.1}, count, times=sigmas)
        flow = {"use_flow_sigmas": True, "prediction_type": "flow_prediction"}
        compare(SHORT["unipc"], {**config, **flow}, count, times={"mu": 0.8})
        compare(SHORT["dpm"], {**config, **flow}, count, times={"mu": 0.8})
    compare(SHORT["flow"], config, 4)  # mu is missing


def test_lcm_strength() -> None:
    for strength, count in itertools.product((0.3, 0.8), (1, 4, 16)):
        times = {"strength": strength, "original_inference_steps": 40}
        compare(SHORT["lcm"], {}, count, times=times)


@pytest.mark.parametrize(
    ("short", "config", "count"),
    [
        ("ddpm", {}, 1001),
        ("ddim", {}, 1001),
        ("lcm", {}, 51),
        ("ddim", {"steps_offset": 1}, 1000),  # looks timestep 1000 up
        ("pndm", {}, 3),  # Runge-Kutta takes four
        ("dpm", {"algorithm_type": "dpmsolver"}, 5),
        ("dpm", {"use_karras_sigmas": True, "use_beta_sigmas": True}, 5),
        ("euler", {"timestep_spacing": "even"}, 5),
        ("euler", {"prediction_type": "noise"}, 5),
        ("ddpm", {"beta_schedule": "quadratic"}, 5),
        ("unipc", {"shift_terminal": 0.1}, 5),
    ],
)
def test_both_refuse(short: str, config: dict[str, Any], count: int) -> None:
    with pytest.raises(Exception):  # noqa: B017
        theirs = Theirs(SHORT[short], config, None)
        theirs.scheduler.set_timesteps(count)
        theirs.run(np.ones(SHAPE, np.float32), SHAPE[1], 0)
    with pytest.raises(InputError):
        scheduler_class(SHORT[short])(**config).schedule(count)


NAN_CASES = [  # Diffusers goes on and returns NaN or infinity; ours says which step cannot be taken
    (
        "ddim",
        {"clip_sample": False, "rescale_betas_zero_snr": True, "timestep_spacing": "trailing"},
    ),
    ("ddpm", {"variance_type": "fixed_large_log"}),
    ("lcm", {"rescale_betas_zero_snr": True}),
    ("unipc", {"lower_order_final": False}),
    ("unipc", {"predict_x0": False}),
]


@pytest.mark.parametrize(("short", "config"), NAN_CASES)
def test_diffusers_gives_nan(short: str, config: dict[str, Any]) -> None:
    bank = np.ones((20, *SHAPE), np.float32)
    theirs = Theirs(SHORT[short], config, lambda k: bank[k])
    theirs.scheduler.set_timesteps(8)
    path = theirs.run(np.ones(SHAPE, np.float32), SHAPE[1], 0)
    assert not np.isfinite(path[-1]).all()
    with pytest.raises(InputError):
        scheduler_class(SHORT[short])(**config).schedule(8)


def noise_name(scheduler: Any) -> str:
    return "noise" if "noise" in inspect.signature(scheduler.step).parameters else "variance_noise"


def face_pair(short: str, config: dict[str, Any], bank: np.ndarray) -> tuple[Any, Any]:
    theirs = Theirs(SHORT[short], config, lambda k: bank[k])
    return theirs, scheduler_class(SHORT[short])(**config)


FACES = [
    ("ddpm", {}),
    ("ddpm", {"variance_type": "fixed_large", **SD}),
    ("ddim", SD),
    ("pndm", {**SD, "skip_prk_steps": True}),
    ("pndm", {}),
    ("euler", {**SD, "use_karras_sigmas": True}),
    ("euler", {**SD, "timestep_spacing": "leading", "steps_offset": 1}),
    ("ancestral", SD),
    ("dpm", {**SD, "use_karras_sigmas": True, "algorithm_type": "sde-dpmsolver++"}),
    ("dpm", {**SD, "solver_order": 3}),
    ("unipc", SD),
    ("lcm", {}),
    ("flow", {"shift": 3.0}),
]


@pytest.mark.parametrize("kind", ["numpy", "torch"])
@pytest.mark.parametrize(("short", "config"), FACES)
def test_face(short: str, config: dict[str, Any], kind: str) -> None:
    rng = np.random.default_rng(1)
    x = rng.standard_normal(SHAPE).astype(np.float32)
    bank = rng.standard_normal((30, *SHAPE)).astype(np.float32)
    wrap = torch.from_numpy if kind == "torch" else np.asarray
    theirs, ours = face_pair(short, config, bank)
    theirs.scheduler.set_timesteps(8)
    ours.set_timesteps(8, device="cpu")
    stream = iter(bank)

    class Generator:
        def normal(self, shape: tuple[int, ...]) -> np.ndarray:
            return next(stream)

    draws = {"generator": Generator()} if any(ours.schedule(8).draws) else {}
    a, b = torch.from_numpy(x), wrap(x)
    for i, t in enumerate(theirs.scheduler.timesteps):
        if hasattr(theirs.scheduler, "scale_model_input"):
            scaled = theirs.scheduler.scale_model_input(a, t)
            mine = ours.scale_model_input(b, ours.timesteps[i])
            assert apart(np.asarray(mine), scaled.numpy()) < TOLERANCE
        result = theirs.scheduler.step(torch.from_numpy(model(a.numpy(), float(t))), t, a)
        output = ours.step(wrap(model(np.asarray(b), float(t))), ours.timesteps[i], b, **draws)
        assert type(output.prev_sample) is type(b)
        assert output.prev_sample.dtype == b.dtype
        assert ours.num_inference_steps == theirs.scheduler.num_inference_steps
        if hasattr(result, "pred_original_sample"):
            assert apart(np.asarray(output.pred_original_sample), result[1].numpy()) < TOLERANCE
        if hasattr(result, "denoised"):
            assert apart(np.asarray(output.denoised), result.denoised.numpy()) < TOLERANCE
        a, b = result.prev_sample, output.prev_sample
        assert apart(np.asarray(b), a.numpy()) < TOLERANCE


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize(("short", "config"), FACES)
def test_half_precision_keeps_its_dtype(short: str, config: dict[str, Any], dtype: str) -> None:
    half = getattr(torch, dtype)
    bank = np.ones((30, *SHAPE), np.float32)
    theirs, ours = face_pair(short, config, bank)
    theirs.scheduler.set_timesteps(8)
    ours.set_timesteps(8)
    x = torch.randn(SHAPE, generator=torch.Generator().manual_seed(0)).to(half)
    t, mine = theirs.scheduler.timesteps[0], ours.timesteps[0]
    a = theirs.scheduler.step(x * 0.3, t, x).prev_sample
    noise = {noise_name(ours): torch.ones(SHAPE)} if any(ours.schedule(8).draws) else {}
    b = ours.step(x * 0.3, mine, x, **noise).prev_sample
    assert a.dtype == b.dtype
    # Diffusers rounds products to half on the way, we round once.
    off = (a.float() - b.float()).abs().max() / x.float().abs().max()
    assert off < 4 * torch.finfo(half).eps


@pytest.mark.parametrize(("short", "config"), FACES)
def test_add_noise(short: str, config: dict[str, Any]) -> None:
    theirs, ours = face_pair(short, config, np.zeros(0))
    rng = np.random.default_rng(2)
    x, noise = rng.standard_normal((2, *SHAPE)).astype(np.float32)
    for prepared in (False, True):
        if prepared:
            theirs.scheduler.set_timesteps(8)
            ours.set_timesteps(8)
        elif theirs.scheduler.timesteps is None:  # PNDM
            continue
        t = theirs.scheduler.timesteps[[0, 2]]
        add = getattr(theirs.scheduler, "add_noise", None)
        args = torch.from_numpy(x), torch.from_numpy(noise)
        a = add(*args, t) if add else theirs.scheduler.scale_noise(args[0], t, args[1])
        for b in (ours.add_noise(x, noise, t.numpy()), ours.add_noise(*args, t)):
            assert apart(np.asarray(b), a.numpy()) < 1e-6
        if hasattr(theirs.scheduler, "get_velocity") and short != "euler":
            v = theirs.scheduler.get_velocity(*args, t)
            assert apart(ours.get_velocity(x, noise, t.numpy()), v.numpy()) < 1e-6


def test_schedule_adds_noise_as_the_face_does() -> None:
    for short, config in FACES:
        ours = scheduler_class(SHORT[short])(**config)
        ours.set_timesteps(8)
        schedule = ours.schedule(8, begin=3)
        x, noise = np.ones(SHAPE, np.float32), np.full(SHAPE, 0.5, np.float32)
        ours.set_begin_index(3)
        many = np.repeat(ours.timesteps[3], SHAPE[0])
        expected = ours.add_noise(x, noise, many)
        np.testing.assert_allclose(schedule.add_noise(0, x, noise), expected, rtol=1e-6)


def test_torch_generator_draws_what_diffusers_draws() -> None:
    theirs = diffusers.EulerAncestralDiscreteScheduler(**SD)
    ours = scheduler_class("euler-ancestral")(**SD)
    theirs.set_timesteps(3)
    ours.set_timesteps(3)
    x = torch.ones(SHAPE)
    for seeds in (5, [5, 6]):
        pair = [
            torch.Generator().manual_seed(5)
            if seeds == 5
            else [torch.Generator().manual_seed(s) for s in (5, 6)]
            for _ in range(2)
        ]
        theirs.set_timesteps(3)
        ours.set_timesteps(3)
        a = theirs.step(x, theirs.timesteps[0], x, generator=pair[0]).prev_sample
        b = ours.step(x, ours.timesteps[0], x, generator=pair[1]).prev_sample
        assert apart(b.numpy(), a.numpy()) < TOLERANCE


def comparable(config: Any) -> dict[str, Any]:
    shown = {
        k: v for k, v in dict(config).items() if k not in ("_class_name", "_diffusers_version")
    }
    shown["_use_default_values"] = sorted(shown.get("_use_default_values", ()))
    return shown


KARRAS = sorted(n for n in SCHEDULERS if scheduler_class(n).family or scheduler_class(n).hands_to)


@pytest.mark.parametrize(
    ("first", "second"),
    [(a, b) for i, a in enumerate(KARRAS) for k, b in enumerate(KARRAS) if (i + k) % 5 == 0],
)
@pytest.mark.slow
def test_switching_classes(first: str, second: str) -> None:
    start = {"_class_name": first, "_diffusers_version": "0.6.0", "num_train_timesteps": 900}
    start |= {**SD, "clip_sample": False, "skip_prk_steps": True, "steps_offset": 1, "unheard": 7}
    a = oracle(first).from_config(start)
    b = scheduler_class(first).from_config(start)
    assert comparable(a.config) == comparable(b.config)
    for overrides in ({}, {"num_train_timesteps": 800}):
        a2 = oracle(second).from_config(a.config, **overrides)
        b2 = scheduler_class(second).from_config(b.config, **overrides)
        assert comparable(a2.config) == comparable(b2.config)
        a3 = oracle(first).from_config(a2.config)
        b3 = scheduler_class(first).from_config(b2.config)
        assert comparable(a3.config) == comparable(b3.config)


def banked(name: str, config: dict[str, Any], bank: np.ndarray) -> tuple[Any, Any, Any]:
    """Diffusers' scheduler with this noise, how often it drew, and ours."""
    theirs = Theirs(name, config, lambda k: bank[k % len(bank)])
    return theirs.scheduler, theirs, scheduler_class(name)(**config)


def toy(x: Any, t: Any) -> Any:
    return torch.from_numpy(model(x.numpy(), float(t)))


@pytest.mark.parametrize(
    ("short", "config"),
    [
        ("euler", {}),
        ("euler", {"prediction_type": "v_prediction", "use_karras_sigmas": True}),
        ("euler", {"prediction_type": "sample"}),
        ("edm", {}),
        ("flowheun", {"shift": 3.0}),
    ],
)
def test_churn(short: str, config: dict[str, Any]) -> None:
    rng = np.random.default_rng(1)
    bank = rng.standard_normal((40, *SHAPE)).astype(np.float32)
    theirs, drawn, ours = banked(SHORT[short], config, bank)
    churn = {"s_churn": 3.0, "s_tmin": 0.05, "s_tmax": 40.0, "s_noise": 1.01}
    for scheduler in (theirs, ours):
        scheduler.set_timesteps(8)
        scheduler.set_begin_index(0)
    x = rng.standard_normal(SHAPE).astype(np.float32) * 10
    schedule = ours.schedule(8, **churn)
    a, b, state = torch.from_numpy(x), torch.from_numpy(x), schedule.start(x)
    for i, t in enumerate(theirs.timesteps):
        noise, before = bank[drawn.draws], drawn.draws
        a_out, b_out = toy(a, t), toy(b, t)
        state = schedule.advance(i, state, model(state[0], float(t)), noise)
        one = theirs.step(a_out, t, a, **churn)
        two = ours.step(b_out, ours.timesteps[i], b, **churn, noise=torch.from_numpy(noise))
        assert schedule.draws[i] is (drawn.draws > before)
        a, b = one.prev_sample, two.prev_sample
        for left, right in zip(one.values(), two.values(), strict=True):
            assert apart(right.numpy(), left.numpy()) < TOLERANCE
        assert apart(state[0], a.numpy()) < TOLERANCE
    assert drawn.draws > 0


@pytest.mark.parametrize("stochastic", [False, True])
def test_per_token_timesteps(stochastic: bool) -> None:
    rng = np.random.default_rng(1)
    bank = rng.standard_normal((1, 2, 5, 3)).astype(np.float32)
    theirs, _, ours = banked(SHORT["flow"], {"stochastic_sampling": stochastic}, bank)
    for scheduler in (theirs, ours):
        scheduler.set_timesteps(6)
    x = torch.from_numpy(rng.standard_normal((2, 5, 3)).astype(np.float32))
    each = torch.from_numpy((rng.random((2, 5)) * 1000).astype(np.float32))
    noise = {"noise": torch.from_numpy(bank[0])} if stochastic else {}
    a = theirs.step(x * 0.3, theirs.timesteps[0], x, per_token_timesteps=each).prev_sample
    b = ours.step(x * 0.3, ours.timesteps[0], x, per_token_timesteps=each, **noise).prev_sample
    assert apart(b.numpy(), a.numpy()) < 1e-6


@pytest.mark.parametrize(
    ("name", "config"),
    [("DDIMScheduler", {**SD, "clip_sample": False}), ("DPMSolverMultistepScheduler", SD)],
)
def test_unipc_with_another_predictor(name: str, config: dict[str, Any]) -> None:
    theirs = diffusers.UniPCMultistepScheduler(**SD, solver_p=oracle(name)(**config))
    schedule = scheduler_class("unipc")(**SD, solver_p=scheduler_class(name)(**config)).schedule(8)
    theirs.set_timesteps(8)
    x = np.random.default_rng(1).standard_normal(SHAPE).astype(np.float32)
    a, state = torch.from_numpy(x), schedule.start(x)
    for i, t in enumerate(theirs.timesteps):
        a = theirs.step(toy(a, t), t, a).prev_sample
        state = schedule.advance(i, state, model(state[0], float(t)))
        assert apart(state[0], a.numpy()) < TOLERANCE


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"prediction_type": "sample", "timestep_spacing": "linspace"},
        {
            "prediction_type": "v_prediction",
            "rescale_betas_zero_snr": True,
            "timestep_spacing": "trailing",
        },
        {"beta_schedule": "linear", "set_alpha_to_one": False},
    ],
)
@pytest.mark.parametrize("count", [1, 3, 8])
def test_cogvideox_dpm(config: dict[str, Any], count: int) -> None:
    rng = np.random.default_rng(1)
    bank = rng.standard_normal((40, *SHAPE)).astype(np.float32)
    theirs, drawn, ours = banked("CogVideoXDPMScheduler", config, bank)
    for scheduler in (theirs, ours):
        scheduler.set_timesteps(count)
    np.testing.assert_array_equal(ours.timesteps, theirs.timesteps)
    np.testing.assert_allclose(ours.alphas_cumprod, theirs.alphas_cumprod, rtol=1e-6)
    x = rng.standard_normal(SHAPE).astype(np.float32)
    schedule = ours.schedule(count)
    a, b, state = torch.from_numpy(x), torch.from_numpy(x), schedule.start(x)
    old = older = None
    for i, t in enumerate(theirs.timesteps):
        back = theirs.timesteps[i - 1] if i > 0 else None
        a_out, b_out = toy(a, t), toy(b, t)
        a, old = theirs.step(a_out, old, t, back, a)
        used = torch.from_numpy(bank[drawn.draws - 1])
        b, older = ours.step(b_out, older, t, back, b, noise=used)
        state = schedule.advance(i, state, model(state[0], float(t)), used.numpy())
        assert apart(b.numpy(), a.numpy()) < TOLERANCE
        assert apart(older.numpy(), old.numpy()) < TOLERANCE
        assert apart(state[0], a.numpy()) < TOLERANCE


@pytest.mark.parametrize("eta", [0.0, 1.0])
@pytest.mark.parametrize("silent", [False, True])
def test_repaint(eta: float, silent: bool) -> None:
    """Step by step with the same noise; and the whole table where all noise is zero."""
    rng = np.random.default_rng(1)
    bank = rng.standard_normal((500, *SHAPE)).astype(np.float32) * (not silent)
    theirs, _, ours = banked("RePaintScheduler", {"eta": eta}, bank)
    for scheduler in (theirs, ours):
        scheduler.set_timesteps(20, 4, 3)
    np.testing.assert_array_equal(ours.timesteps, theirs.timesteps)
    known = torch.from_numpy(rng.standard_normal(SHAPE).astype(np.float32))
    mask = torch.from_numpy((rng.random(SHAPE) > 0.5).astype(np.float32))
    x = rng.standard_normal(SHAPE).astype(np.float32)
    stream = (torch.from_numpy(noise) for noise in itertools.cycle(bank))
    schedule = ours.schedule(20, jump_length=4, jump_n_sample=3)
    state, row, rising = schedule.masked(x, known.numpy(), mask.numpy()), 0, False
    a = b = torch.from_numpy(x)
    last = int(theirs.timesteps[0]) + 1
    for t in theirs.timesteps:
        if t < last:
            if rising:  # the jump is one row
                state, row = schedule.advance(row, state, state[0], x * 0), row + 1
            a_out, b_out = toy(a, t), toy(b, t)
            a = theirs.step(a_out, t, a, known, mask).prev_sample
            b = ours.step(b_out, t, b, known, mask, noise=next(stream)).prev_sample
            state, row = schedule.advance(row, state, model(state[0], float(t)), x * 0), row + 1
        else:
            a, b = theirs.undo_step(a, last), ours.undo_step(b, last, noises=stream)
        rising, last = bool(t >= last), t
        assert apart(b.numpy(), a.numpy()) < TOLERANCE
        if silent and not rising:
            assert apart(state[0], a.numpy()) < TOLERANCE
    assert row == len(schedule)


@pytest.mark.parametrize("count", [2, 10])
@pytest.mark.parametrize("corrections", [1, 2])
def test_score_sde_ve(count: int, corrections: int) -> None:
    rng = np.random.default_rng(1)
    bank = rng.standard_normal((40, *SHAPE)).astype(np.float32)
    config = {"correct_steps": corrections}
    theirs, _, ours = banked("ScoreSdeVeScheduler", config, bank)
    for scheduler in (theirs, ours):
        scheduler.set_timesteps(count)
        scheduler.set_sigmas(count)
    for key in ("timesteps", "sigmas", "discrete_sigmas"):
        np.testing.assert_allclose(getattr(ours, key), getattr(theirs, key), rtol=1e-6)
    schedule = ours.schedule(count)
    x = rng.standard_normal(SHAPE).astype(np.float32) * np.float32(schedule.init_noise_sigma)
    a, b, state = torch.from_numpy(x), torch.from_numpy(x), schedule.start(x)
    noise = iter(bank)

    def score(x: Any, sigma: Any) -> Any:
        return -toy(x, sigma) / float(sigma)

    for i, t in enumerate(theirs.timesteps):
        sigma = theirs.sigmas[i]
        for k in range(corrections + 1):
            row, fresh = i * (corrections + 1) + k, next(noise)
            told = schedule.timesteps[row]
            out = score(torch.from_numpy(state[0]), told).numpy()
            state = schedule.advance(row, state, out, fresh)
            fresh = torch.from_numpy(fresh)
            a_out, b_out = score(a, sigma), score(b, sigma)
            if k < corrections:
                one = theirs.step_correct(a_out, a)
                two = ours.step_correct(b_out, b, noise=fresh)
            else:
                one = theirs.step_pred(a_out, t, a)
                two = ours.step_pred(b_out, t, b, noise=fresh)
                assert apart(two.prev_sample_mean.numpy(), one.prev_sample_mean.numpy()) < TOLERANCE
            a, b = one.prev_sample, two.prev_sample
            assert apart(b.numpy(), a.numpy()) < TOLERANCE
            if row + 1 < len(schedule):
                assert apart(state[0], a.numpy()) < TOLERANCE
    assert apart(state[0], one.prev_sample_mean.numpy()) < TOLERANCE  # the last adds no noise


@pytest.mark.parametrize("mode", ["bicubic", "nearest"])
def test_flow_lcm_grows(mode: str) -> None:
    config = {"scale_factors": [1.5, 2.0, 3.0], "upscale_mode": mode}
    theirs = diffusers.FlowMatchLCMScheduler(**config)
    ours = scheduler_class("flow-match-lcm")(**config)
    with pytest.raises(InputError, match="a table cannot"):
        ours.schedule(4)
    results = []
    for scheduler in (theirs, ours):
        scheduler.set_timesteps(4)
        x = torch.from_numpy(np.random.default_rng(0).standard_normal((1, 2, 4, 4))).float()
        generator = torch.Generator().manual_seed(0)
        for t in scheduler.timesteps:
            x = scheduler.step(x * 0.3, t, x, generator).prev_sample
        results.append(x)
    assert results[1].shape == (1, 2, 12, 12)
    assert apart(results[1].numpy(), results[0].numpy()) < TOLERANCE


def test_report() -> None:
    """What the grid above measured, and that all of it is within the limit; shown with -s."""
    if not WORST:
        pytest.skip("the grid of trajectories did not run")
    for name in sorted(WORST):
        print(f"{name}: worst relative difference {WORST[name]:.1e}")
    refused = sum(outcome == "refused" for *_, outcome in NAN)
    print(f"{len(NAN)} runs where Diffusers gives NaN or infinity: {refused} refused here")
    print(f"{len(ILL)} runs where Diffusers' own rounding is larger than {TOLERANCE}")
    assert max(WORST.values()) <= TOLERANCE
