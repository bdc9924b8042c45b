"""The table engine: pure, float32, and without torch."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from perfuse.errors import InputError
from perfuse.schedulers import SCHEDULERS, Schedule, scheduler_class
from perfuse.schedulers.linear import Linear, M, X, combine, slot
from perfuse.schedulers.table import Row

SHAPE = (2, 3, 4, 4)


def draw(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(SHAPE).astype(np.float32)


def test_linear_reads_like_algebra() -> None:
    assert (2 * (X + M) - X / 2).terms == ((0, 1.5), (-2, 2.0))
    assert (X - X).terms == ()
    assert (np.float32(0.5) * X).terms == ((0, 0.5),)
    assert not (X / 0).finite


@pytest.mark.parametrize(
    "linear", [X, 2 * X, X - M, 3 * X - M, 0.5 * X + M, X + 2 * slot(1) - M, 0.1 * X + M - slot(1)]
)
def test_combine(linear: Linear) -> None:
    x, y, m = draw(0), draw(1), draw(2)
    operands = [x, y, None, m, None]
    before = [x.copy(), y.copy(), m.copy()]
    got = combine(linear, operands)
    exact = sum(c * operands[i].astype(np.float64) for i, c in linear.terms)
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, exact, rtol=1e-5, atol=1e-6)
    for kept, now in zip(before, (x, y, m), strict=True):
        np.testing.assert_array_equal(kept, now)


def test_identity_is_an_alias() -> None:
    x = draw(0)
    assert combine(X, [x, None, None, None]) is x


@pytest.mark.parametrize("name", SCHEDULERS)
def test_a_run_is_pure_and_float32(name: str) -> None:
    scheduler = scheduler_class(name)()
    config = dict(scheduler.config)
    before, asked = np.array(scheduler.timesteps), scheduler.num_inference_steps
    schedule = scheduler.schedule(8)
    state = schedule.start(draw(0) * schedule.init_noise_sigma)
    for i, _ in enumerate(schedule.timesteps):
        seen = schedule.scale_input(i, state[0])
        out = np.tanh(seen)
        noise = draw(i + 1) if schedule.draws[i] else None
        kept = [a.copy() for a in (*state, out)]
        after = schedule.advance(i, state, out, noise)
        again = schedule.advance(i, state, out, noise)
        preview = schedule.denoised(i, state, out)
        for a, b in zip(kept, (*state, out), strict=True):
            np.testing.assert_array_equal(a, b)
        for a, b in zip(after, again, strict=True):
            np.testing.assert_array_equal(a, b)
        assert {a.dtype for a in (*after, preview, seen)} == {np.dtype(np.float32)}
        assert isinstance(after, tuple)
        state = after
    assert np.isfinite(state[0]).all()
    np.testing.assert_array_equal(before, np.array(scheduler.timesteps))
    assert config == dict(scheduler.config)
    assert scheduler.num_inference_steps == asked


@pytest.mark.parametrize("name", SCHEDULERS)
def test_timesteps_cannot_be_written(name: str) -> None:
    schedule = scheduler_class(name)().schedule(8)
    assert schedule.timesteps.dtype == np.float32
    assert len(schedule) == len(schedule.timesteps) == len(schedule.draws)
    with pytest.raises(ValueError, match="read-only"):
        schedule.timesteps[0] = 1


@pytest.mark.parametrize("name", SCHEDULERS)
def test_other_dtypes_become_float32(name: str) -> None:
    schedule = scheduler_class(name)().schedule(8)
    for dtype in (np.float16, np.float64):
        state = schedule.start(draw(0).astype(dtype))
        noise = draw(1).astype(dtype) if schedule.draws[0] else None
        after = schedule.advance(0, state, draw(2).astype(dtype), noise)
        assert {a.dtype for a in after} == {np.dtype(np.float32)}


def test_begin_takes_the_rows_from_there_on() -> None:
    scheduler = scheduler_class("euler")()
    whole, rest = scheduler.schedule(8), scheduler.schedule(8, begin=5)
    assert rest.rows == whole.rows[5:]
    assert rest.init_noise_sigma == whole.init_noise_sigma
    for begin in (-1, 8):
        with pytest.raises(InputError, match="not one of the 8 steps"):
            scheduler.schedule(8, begin=begin)


def test_pndm_calls_the_model_once_more() -> None:
    assert len(scheduler_class("pndm")(skip_prk_steps=True).schedule(8)) == 9
    assert len(scheduler_class("pndm")().schedule(8)) == 17


def test_fractional_timesteps_stay_fractional() -> None:
    t = scheduler_class("euler")(use_karras_sigmas=True).schedule(8).timesteps
    assert np.any(t != t.round())


def test_missing_noise_is_said() -> None:
    schedule = scheduler_class("euler-ancestral")().schedule(3)
    assert schedule.draws == (True, True, True)
    with pytest.raises(InputError, match="draws noise and got none"):
        schedule.advance(0, schedule.start(draw(0)), draw(1))


def test_a_table_that_divides_by_zero_is_refused() -> None:
    row = Row(timestep=1, update=(X / 0,), denoised=X, noising=(1.0, 0.0))
    with pytest.raises(InputError, match="divides by zero"):
        Schedule(rows=(row,))


def test_learned_variance_wants_twice_the_channels() -> None:
    schedule = scheduler_class("ddpm")(variance_type="learned_range").schedule(3)
    with pytest.raises(InputError, match="6 channels"):
        schedule.advance(0, schedule.start(draw(0)), draw(1), draw(2))


def test_nothing_heavy_is_imported() -> None:
    code = (
        "import sys; from perfuse.schedulers import SCHEDULERS, scheduler_class\n"
        "loaded = [m for m in sys.modules if m.startswith('perfuse.schedulers.')]\n"
        "assert not loaded, loaded\n"
        "[scheduler_class(n)().schedule(4) for n in SCHEDULERS]\n"
        "import numpy\n"
        "scheduler = scheduler_class('euler')()\n"
        "scheduler.set_timesteps(4)\n"
        "arrays = (scheduler.timesteps, scheduler.sigmas, scheduler.betas)\n"
        "assert all(isinstance(a, numpy.ndarray) for a in arrays)\n"
        "heavy = {'torch', 'scipy', 'diffusers', 'transformers'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
