"""What cannot fit into memory is refused before it is tried."""

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from perfuse import DiffusionPipeline
from perfuse.errors import InputError
from perfuse.memory import check_memory, most_memory, read_size

Make = Callable[[str], Path]


def test_the_limit_is_the_machine_s_or_the_user_s(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PERFUSE_MEMORY_LIMIT", raising=False)
    machine = most_memory()
    assert machine is None or machine > 10**8
    monkeypatch.setenv("PERFUSE_MEMORY_LIMIT", "3 GB")
    assert most_memory() == read_size("3GB") == 3 * 10**9
    check_memory(3 * 10**9, "Little")
    with pytest.raises(InputError, match=r"Much was asked for.* 4 GB of memory, and 3 GB is"):
        check_memory(4 * 10**9, "Much")
    with pytest.raises(InputError, match=r"at least 10\^191 GB"):
        check_memory(10**200, "More")
    monkeypatch.setenv("PERFUSE_MEMORY_LIMIT", "much")
    with pytest.raises(InputError, match="a number and a unit"):
        most_memory()


RELEASED = """
import re
from pathlib import Path
from perfuse.memory import return_memory

def resident():
    return int(re.search(r"RssAnon:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1])

before = resident()
held = [b"x" * 100_000 for _ in range(2000)]
last = held[-1]  # behind the others in memory
full = resident()
held.clear()
return_memory()
print(full - before, resident() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="/proc says how much memory there is")
def test_what_was_released_goes_back_to_the_system() -> None:
    # In a process of its own: another has room that it was given before.
    done = subprocess.run(
        [sys.executable, "-c", RELEASED], capture_output=True, text=True, check=True
    )
    full, left = map(int, done.stdout.split())
    assert full > 150_000 and left < 50_000


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"height": 4_000_000, "width": 4_000_000}, "A picture of 4000000 x 4000000"),
        ({"batch_size": 10**9}, "1000000000 pictures of 8 x 8"),
        ({"batch_size": 10**30}, "10\\^.* GB"),
    ],
)
def test_pictures_that_do_not_fit(checkpoint: Make, asked: dict[str, int], said: str) -> None:
    pipe = DiffusionPipeline.from_pretrained(checkpoint("tiny"), backend="torch:cpu")
    with pytest.raises(InputError, match=said):
        pipe(num_inference_steps=1, **asked)


def test_many_pictures_are_refused_before_their_prompt_is_read(
    checkpoint: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    from perfuse.tasks import text

    pipe = DiffusionPipeline.from_pretrained(checkpoint("words"), backend="torch:cpu")
    monkeypatch.setenv("PERFUSE_MEMORY_LIMIT", "1GB")
    with pytest.raises(InputError, match="1000000 pictures of .* was asked for"):
        pipe("red", num_images_per_prompt=10**6)
    states = {"positive": {"encoder_hidden_states": np.zeros((1, 77, 768), np.float32)}}
    with pytest.raises(InputError, match="Text for 10000 pictures of each prompt was asked for"):
        text.conditions_of(states, 10_000)


def test_a_decoder_has_a_price(checkpoint: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of what goes through it at once: of pictures one by one it is less."""
    pipe = DiffusionPipeline.from_pretrained(checkpoint("words"), backend="torch:cpu")
    given: dict[str, Any] = {"num_images_per_prompt": 10, "height": 32, "width": 32}
    given |= {"num_inference_steps": 1, "output_type": "np"}
    monkeypatch.setenv("PERFUSE_MEMORY_LIMIT", "1MB")
    with pytest.raises(InputError, match="Decoding 10 x 32 x 32 pixels at once was asked for"):
        pipe("red", **given)
    pipe.enable_vae_slicing()
    assert pipe("red", **given).images.shape == (10, 32, 32, 3)


def test_a_picture_that_cannot_be_decoded_is_refused_before_the_first_step(
    checkpoint: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipe = DiffusionPipeline.from_pretrained(checkpoint("words"), backend="torch:cpu")
    given: dict[str, Any] = {"height": 64, "width": 64, "num_inference_steps": 2}
    steps: list[int] = []
    given["callback_on_step_end"] = lambda pipe, step, timestep, state: steps.append(step) or {}
    monkeypatch.setenv("PERFUSE_MEMORY_LIMIT", "390KB")
    with pytest.raises(InputError, match="Decoding 1 x 64 x 64 pixels at once was asked for"):
        pipe("red", **given)
    assert not steps
    assert pipe("red", output_type="latent", **given).images.shape[0] == 1
    assert steps == [0, 1]


def test_a_limit_that_is_lower(checkpoint: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = DiffusionPipeline.from_pretrained(checkpoint("tiny"), backend="torch:cpu")
    monkeypatch.setenv("PERFUSE_MEMORY_LIMIT", "1MB")
    with pytest.raises(InputError, match="PERFUSE_MEMORY_LIMIT="):
        pipe(num_inference_steps=1, batch_size=1000)
    assert len(pipe(num_inference_steps=1).images) == 1


def test_every_denoiser_and_every_autoencoder_has_a_price() -> None:
    """From its config: of twice the height and width it is four times as much."""
    from perfuse.models.registry import own
    from perfuse.plugins import resolve

    kinds = [one for one in own() if re.search(r"\wTransformer2DModel|UNet", one.class_name)]
    assert len(kinds) >= 9
    for one in kinds:
        config: Any = resolve(one.config)()
        sizes = {"latent_height": 64, "latent_width": 64, "image_sequence": 1024}
        large = {"latent_height": 128, "latent_width": 128, "image_sequence": 4096}
        assert config.held(large) == 4 * config.held(sizes) > 0, one.class_name
    for one in [one for one in own() if one.class_name.startswith(("Autoencoder", "Asymmetric"))]:
        config = resolve(one.config)()
        assert config.held({"height": 64, "width": 64}) >= 2 * 64 * 64, one.class_name


def test_a_transformer_s_activations_count(
    checkpoint: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Latents and pixels of 4096 x 4096 are 0.45 GB; with tokens, queries, keys and values 0.99."""
    pipe = DiffusionPipeline.from_pretrained(checkpoint("flux"), backend="torch:cpu")
    monkeypatch.setenv("PERFUSE_MEMORY_LIMIT", "600MB")
    with pytest.raises(InputError, match="4096 x 4096 was asked for; that needs at least 0.99 GB"):
        pipe("red", height=4096, width=4096)


def test_what_a_unet_leaves_for_its_second_half_counts() -> None:
    """Of Stable Diffusion 1.5 at 512 x 512 the twelve arrays that a ControlNet adds to."""
    from perfuse.models.unet_2d_condition.description import UNet2DConditionConfig

    left = [(320, 64)] * 3 + [(320, 32)] + [(640, 32)] * 2 + [(640, 16)] + [(1280, 16)] * 2
    left += [(1280, 8)] * 3
    config = UNet2DConditionConfig(block_out_channels=(320, 640, 1280, 1280))
    held = config.held({"latent_height": 64, "latent_width": 64})
    assert held == sum(channels * side**2 for channels, side in left)


def test_a_call_has_a_price(checkpoint: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """By its batch and the length of its text, before any table is computed."""
    from perfuse.models.registry import host_inputs
    from perfuse.sources.checkpoint import Checkpoint

    encoder = Checkpoint.open(checkpoint("flux")).spec.components["text_encoder_2"]
    assert host_inputs(encoder, {"batch": 1, "sequence": 8}) is not None
    monkeypatch.setenv("PERFUSE_MEMORY_LIMIT", "1GB")
    with pytest.raises(InputError, match="A call of text_encoder_2 for batch 100000, sequence 512"):
        host_inputs(encoder, {"batch": 100_000, "sequence": 512})
