"""The noise source: golden values, the order of draws, and what it refuses."""

import hashlib
import subprocess
import sys

import numpy as np
import pytest

from perfuse.arrays.noise import (
    MODES,
    BatchNoise,
    NoiseSource,
    fresh_seed,
    noise_for,
    noise_source,
)
from perfuse.errors import InputError


def digest(values):
    return hashlib.sha256(values.astype("<f4").tobytes()).hexdigest()


# --- the same bits on every processor ---------------------------------------------------------

GOLDEN = {
    ("torch-cpu", 0): "36e670080193edd8ed3a9704778481ab41907538eb8bad167da417f7e138557d",
    ("torch-cpu", -1): "f93d2b44d8f28d6adf7440ca82cb3144a6f91a9275f0c35c9b3806e816f654c0",
    ("portable", 0): "2e3a18ef6704e824462d2fff5fcc25583d6a7720f0b3e58813133c4bf887dbef",
    ("portable", 2**64 - 1): "95baf3d94f189959b9c31a144cb37782710ebf00623d3cf015b0a223811262eb",
}


@pytest.mark.parametrize(("mode", "seed"), GOLDEN)
def test_the_bits_are_these_on_every_processor(mode, seed):
    source = NoiseSource(seed, mode)
    drawn = [source.normal((n,)) for n in (7, 40000, 8, 37, 1)]
    assert digest(np.concatenate(drawn)) == GOLDEN[mode, seed]


def test_torch_cpu_draws_the_well_known_values_of_seed_zero():
    # What torch.manual_seed(0); torch.randn(4) prints in every PyTorch tutorial.
    expected = [1.5409960746765137, -0.293428897857666, -2.1787893772125244, 0.5684312582015991]
    assert NoiseSource(0).normal((4,)).tolist() == pytest.approx(expected, abs=1e-6)


def philox_4x64_10(counter, key):
    """Salmon et al. 2011, in plain integers: an independent definition of the portable stream."""
    mask = 2**64 - 1
    c, k = list(counter), list(key)
    for _ in range(10):
        a, b = 0xD2E7470EE14C6C93 * c[0], 0xCA5A826395121157 * c[2]
        c = [(b >> 64) ^ c[1] ^ k[0], b & mask, (a >> 64) ^ c[3] ^ k[1], a & mask]
        k = [(k[0] + 0x9E3779B97F4A7C15) & mask, (k[1] + 0xBB67AE8584CAA73B) & mask]
    return c


def test_the_written_out_philox_gives_the_papers_known_answer():
    # kat_vectors of the authors' Random123 library.
    zeros = philox_4x64_10([0, 0, 0, 0], [0, 0])
    assert [f"{word:016x}" for word in zeros] == [
        "16554d9eca36314c",
        "db20fe9d672d0fdc",
        "d7e772cee186176b",
        "7e68b68aec7ba23b",
    ]


@pytest.mark.parametrize("seed", [0, 12345, -2, 2**63 + 9])
def test_portable_is_philox_and_box_muller(seed):
    from math import cos, log, pi, sin, sqrt

    expected = []
    for counter in range(1, 26):  # numpy counts from 1
        words = philox_4x64_10([counter, 0, 0, 0], [seed % 2**64, 0])
        for first, second in (words[:2], words[2:]):
            radius = sqrt(-2 * log(((first >> 11) + 1) * 2.0**-53))
            angle = 2 * pi * (second >> 11) * 2.0**-53
            expected += [radius * cos(angle), radius * sin(angle)]
    got = NoiseSource(seed, "portable").normal((100,))
    np.testing.assert_allclose(got, np.float32(expected), rtol=2e-7, atol=1e-9)


@pytest.mark.parametrize("mode", MODES)
def test_the_values_are_standard_normal(mode):
    z = NoiseSource(11, mode).normal((1_000_000,)).astype(np.float64)
    assert abs(z.mean()) < 0.005  # five standard errors
    assert abs((z**2).mean() - 1) < 0.0071
    assert abs((z**3).mean()) < 0.02
    assert abs((z**4).mean() - 3) < 0.05
    assert 4.3 < abs(z).max() < 6.5
    assert abs((z[:-1] * z[1:]).mean()) < 0.005  # neighbours are not correlated


def test_different_seeds_give_different_noise():
    drawn = {digest(NoiseSource(s, m).normal((64,))) for s in range(50) for m in MODES}
    assert len(drawn) == 100


def test_portable_uses_all_64_bits_and_torch_cpu_the_low_32():
    def first(seed, mode):
        return digest(NoiseSource(seed, mode).normal((16,)))

    assert first(5, "torch-cpu") == first(5 + 2**32, "torch-cpu")
    assert first(5, "portable") != first(5 + 2**32, "portable")
    for mode in MODES:
        assert first(-3, mode) == first(2**64 - 3, mode)


def test_the_polynomials_agree_with_the_maths_library():
    from perfuse.arrays.noise import _cos_sin_of_turns, _log

    x = np.concatenate([2.0 ** -np.arange(0, 54.0), np.linspace(2**-53, 1, 100_001)])
    np.testing.assert_allclose(_log(x), np.log(x), rtol=6e-16, atol=0)
    cos, sin = _cos_sin_of_turns(x)
    np.testing.assert_allclose(cos, np.cos(2 * np.pi * x), rtol=0, atol=1e-15)
    np.testing.assert_allclose(sin, np.sin(2 * np.pi * x), rtol=0, atol=1e-15)


# --- the order of draws -----------------------------------------------------------------------


def test_portable_is_one_sequence_however_it_is_cut():
    whole = NoiseSource(4, "portable").normal((60,))
    source = NoiseSource(4, "portable")
    cut = [source.normal((n,)) for n in (1, 0, 3, 16, 2, 17, 21)]
    assert np.array_equal(np.concatenate(cut), whole)


def test_torch_cpu_prefix_holds_for_multiples_of_sixteen_only():
    long = NoiseSource(4).normal((64,))
    assert np.array_equal(NoiseSource(4).normal((32,)), long[:32])
    assert not np.array_equal(NoiseSource(4).normal((40,))[24:], long[24:40])


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("shape", [(), (0,), (3, 0, 2), (1,), (2, 3), (1, 4, 8, 8), (15,), (17,)])
def test_shape_and_dtype(mode, shape):
    values = NoiseSource(0, mode).normal(shape)
    assert values.shape == shape
    assert values.dtype == np.float32
    assert np.isfinite(values).all()


@pytest.mark.parametrize("mode", MODES)
def test_an_empty_draw_does_not_move_the_stream(mode):
    source = NoiseSource(8, mode)
    source.normal((0, 4))
    assert np.array_equal(source.normal((20,)), NoiseSource(8, mode).normal((20,)))


def test_what_is_drawn_later_does_not_change_what_was_drawn():
    source = NoiseSource(8, "portable")
    first = source.normal((5,))
    before = first.copy()
    source.normal((5,))
    assert np.array_equal(first, before)


# --- one source, or one for each picture ------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
def test_a_list_of_seeds_draws_each_picture_from_its_own(mode):
    noise = noise_for([3, 4, 5], batch=3, mode=mode)
    assert noise.seeds == (3, 4, 5)
    first, second = noise.normal((3, 4, 8, 8)), noise.normal((3, 4, 8, 8))
    alone = NoiseSource(4, mode)
    assert np.array_equal(first[1:2], alone.normal((1, 4, 8, 8)))
    assert np.array_equal(second[1:2], alone.normal((1, 4, 8, 8)))


def test_one_seed_draws_the_whole_batch_at_once():
    noise = noise_for(3, batch=2)
    assert noise.seeds == (3,)
    drawn = noise.normal((2, 4, 8, 8))
    assert np.array_equal(drawn, NoiseSource(3).normal((2, 4, 8, 8)))
    assert not np.array_equal(drawn[0], drawn[1])


def test_without_a_seed_a_fresh_one_is_used_and_told():
    noise = noise_for(batch=2)
    (seed,) = noise.seeds
    assert 0 <= seed < 2**32
    assert np.array_equal(noise.normal((2, 5)), noise_for(seed, batch=2).normal((2, 5)))
    assert len({fresh_seed() for _ in range(8)}) > 1


def test_seed_zero_is_a_seed():
    assert noise_for(0, batch=1).seeds == (0,)


def test_numpy_integers_and_ranges_are_seeds():
    assert noise_for(np.int64(7), batch=1).seeds == (7,)
    assert noise_for(range(2), batch=2).seeds == (0, 1)


def test_a_source_may_be_the_users_own():
    class Ones:
        def normal(self, shape):
            return np.ones(shape, np.float32)

    assert noise_for(generator=Ones(), batch=2).normal((2, 3)).sum() == 6
    made = NoiseSource(1)
    assert noise_source(made) is made
    assert noise_for(generator=[made, Ones()], batch=2).seeds == (1, None)


def test_a_batch_of_another_size_is_refused_with_both_numbers():
    noise = BatchNoise(sources=(NoiseSource(0), NoiseSource(1)), seeds=(0, 1))
    with pytest.raises(InputError, match="3 pictures.* 2 seeds"):
        noise.normal((3, 4))
    with pytest.raises(InputError, match="list of 2 seeds.*batch of 3"):
        noise_for([1, 2], batch=3)
    with pytest.raises(InputError, match="list of 1 generators.*batch of 2"):
        noise_for(generator=[NoiseSource(0)], batch=2)


# --- what is refused --------------------------------------------------------------------------


@pytest.mark.parametrize("seed", [1.0, 1.5, "3", True, np.True_, None, 2**64, -(2**63) - 1, [1]])
def test_a_bad_seed_is_refused(seed):
    with pytest.raises(InputError, match="seed"):
        NoiseSource(seed)


@pytest.mark.parametrize("given", [np.random.default_rng(0), np.random.RandomState(0)])
def test_numpy_generators_are_refused(given):
    with pytest.raises(InputError, match="torch.Generator"):
        noise_source(given)


def test_seed_and_generator_together_are_refused():
    with pytest.raises(InputError, match="Both"):
        noise_for(1, NoiseSource(1), batch=1)


def test_an_unknown_mode_is_refused_with_the_known_ones():
    with pytest.raises(InputError, match="'cuda' is unknown.*torch-cpu, portable"):
        NoiseSource(0, "cuda")


@pytest.mark.parametrize("shape", [(-1,), (2.0,), 5, None, ("a",)])
def test_a_bad_shape_is_refused(shape):
    with pytest.raises(InputError, match="shape"):
        NoiseSource(0).normal(shape)


def test_drawing_needs_no_torch():
    code = (
        "import sys; from perfuse.arrays.noise import noise_for;"
        "noise_for(0, batch=1).normal((1, 4, 8, 8));"
        "print([m for m in sys.modules if m.split('.')[0] in ('torch', 'transformers', 'PIL')])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
