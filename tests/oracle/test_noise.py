"""The torch-cpu stream against PyTorch, and batches against Diffusers' randn_tensor."""

import os
import subprocess
import sys

import numpy as np
import pytest

from perfuse.arrays.noise import NoiseSource, TorchNoise, noise_for, noise_source
from perfuse.errors import InputError

torch = pytest.importorskip("torch")

# Measured: 4.8e-7 against the AVX2 and AVX-512 kernels, 2.4e-6 against the scalar one.
TOLERANCE = 4e-6
SEEDS = [0, 1, 42, -1, -2, 2**31, 2**32, 2**32 + 5, 2**63, 2**64 - 1, -(2**63)]


def both(seed):
    return torch.Generator("cpu").manual_seed(seed), NoiseSource(seed)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_latent_is_torchs(seed):
    generator, source = both(seed)
    expected = torch.randn((2, 4, 64, 64), generator=generator).numpy()
    assert abs(source.normal((2, 4, 64, 64)) - expected).max() <= TOLERANCE


@pytest.mark.parametrize("seed", SEEDS)
def test_any_sequence_of_draws_is_torchs(seed):
    """Small and large draws, whole blocks and tails, odd counts that leave a normal behind."""
    generator, source = both(seed)
    counts = np.random.RandomState(seed % 1000).choice(
        [0, 1, 2, 3, 7, 14, 15, 16, 17, 31, 32, 33, 100, 4096, 70001], size=150
    )
    for i, count in enumerate(counts.tolist()):
        expected = torch.randn((count,), generator=generator).numpy()
        got = source.normal((count,))
        assert got.shape == expected.shape
        assert np.allclose(got, expected, rtol=0, atol=TOLERANCE), f"draw {i}, {count} values"


def test_a_million_values_stay_close():
    generator, source = both(9)
    expected = torch.randn((1 << 21,), generator=generator).numpy()
    assert abs(source.normal((1 << 21,)) - expected).max() <= TOLERANCE


@pytest.mark.slow
@pytest.mark.parametrize("kernel", ["default", "avx2"])
def test_each_of_torchs_kernels_is_close(kernel, tmp_path):
    """PyTorch picks its kernel when the process starts, so each needs a process of its own."""
    path = tmp_path / "drawn.npy"
    code = (
        "import numpy, sys, torch; g = torch.Generator('cpu').manual_seed(9);"
        "numpy.save(sys.argv[1], torch.randn((1 << 20,), generator=g).numpy())"
    )
    env = {**os.environ, "ATEN_CPU_CAPABILITY": kernel}
    subprocess.run([sys.executable, "-c", code, str(path)], env=env, check=True)
    assert abs(NoiseSource(9).normal((1 << 20,)) - np.load(path)).max() <= TOLERANCE


@pytest.mark.parametrize("seed", [2**64, -(2**63) - 1, 1.0, True, "3"])
def test_torch_refuses_the_same_seeds(seed):
    with pytest.raises((RuntimeError, ValueError, TypeError)):
        torch.Generator("cpu").manual_seed(seed)
    with pytest.raises(InputError):
        NoiseSource(seed)


def test_a_torch_generator_is_drawn_from_and_moved_on():
    mine = torch.Generator("cpu").manual_seed(5)
    theirs = torch.Generator("cpu").manual_seed(5)
    noise = noise_source(mine)
    assert isinstance(noise, TorchNoise)
    for shape in [(1, 4, 8, 8), (3,), (2, 17)]:
        assert np.array_equal(noise.normal(shape), torch.randn(shape, generator=theirs).numpy())
    assert torch.equal(mine.get_state(), theirs.get_state())
    with pytest.raises(InputError, match="torch.Generator was expected"):
        TorchNoise(5)


@pytest.mark.parametrize("each", [False, True])
def test_batches_are_randn_tensors(each):
    randn_tensor = pytest.importorskip("diffusers.utils.torch_utils").randn_tensor
    shape = (3, 4, 5, 7)
    seeds = [3, 1, 4] if each else 3
    mine, theirs = (
        [torch.Generator("cpu").manual_seed(s) for s in seeds]
        if each
        else torch.Generator("cpu").manual_seed(seeds)
        for _ in range(2)
    )
    from_seeds, from_generators = noise_for(seeds, batch=3), noise_for(generator=mine, batch=3)
    assert from_generators.seeds == ((None, None, None) if each else (None,))
    for _ in range(3):
        expected = randn_tensor(shape, generator=theirs).numpy()
        assert np.array_equal(from_generators.normal(shape), expected)
        assert abs(from_seeds.normal(shape) - expected).max() <= TOLERANCE
