"""Arguments of every native pipeline class beside Diffusers': the same names, the same defaults."""

import importlib
import inspect
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

diffusers = pytest.importorskip("diffusers")
pytest.importorskip("transformers")

import perfuse
from perfuse import DiffusionPipeline
from perfuse.contract.hooks import PipelineManifest
from perfuse.contract.steps import REQUIRED, Input
from perfuse.plugins import host
from perfuse.run.calling import Calling
from perfuse.run.pipeline import SETTINGS

#: Of Diffusers 0.42.1.
CLASSES = sorted(name for name in host().pipelines() if hasattr(diffusers, name))
#: What a call takes whatever the task, and what says how much LoRAs count.
OF_ALL = {
    *inspect.signature(Calling.__call__).parameters,
    "cross_attention_kwargs",
    "joint_attention_kwargs",
    "attention_kwargs",
}
#: Defaults that are not Diffusers', and do the same: ours, theirs.
SAME = {
    # The model's own size, which Diffusers' classes write as a number.
    ("AuraFlowPipeline", "height"): (None, 1024),
    ("AuraFlowPipeline", "width"): (None, 1024),
    ("SanaPipeline", "height"): (None, 1024),
    ("SanaPipeline", "width"): (None, 1024),
    ("SanaSprintPipeline", "height"): (None, 1024),
    ("SanaSprintPipeline", "width"): (None, 1024),
    ("QwenImage21Pipeline", "output_resolution"): (None, 1024),
    # The scheduler's own angles.
    ("SanaSprintPipeline", "max_timesteps"): (None, 1.57080),
    ("SanaSprintPipeline", "intermediate_timesteps"): (None, 1.3),
    # No text is the empty text.
    ("PixArtAlphaPipeline", "negative_prompt"): (None, ""),
    ("PixArtSigmaPipeline", "negative_prompt"): (None, ""),
    ("SanaPipeline", "negative_prompt"): (None, ""),
    ("StableUnCLIPImg2ImgPipeline", "prompt"): ("", None),
}


def inputs_of(manifest: PipelineManifest) -> Mapping[str, Input]:
    """The inputs of a class's tasks, of the first task that has each, with the class's defaults."""
    found: dict[str, Input] = {}
    for place in manifest.tasks.values():
        module, name = place.split(":")
        task = getattr(importlib.import_module(module), name).with_defaults(manifest.defaults)
        found = {**task.inputs, **found}
    return found


@pytest.mark.parametrize("name", CLASSES)
def test_arguments_of_a_call(name: str) -> None:
    theirs = inspect.signature(getattr(diffusers, name).__call__).parameters
    ours = inputs_of(host().pipelines()[name])
    assert theirs.keys() - ours.keys() - OF_ALL - {"kwargs"} == set()
    differing = {}
    for key in theirs.keys() & ours.keys():
        default, wanted = ours[key].default, theirs[key].default
        wanted = None if wanted is inspect.Parameter.empty else wanted
        if default is REQUIRED:  # what Diffusers fails without
            assert wanted is None
        elif _plain(default) != _plain(wanted):
            differing[name, key] = (default, wanted)
    assert differing == {pair: one for pair, one in SAME.items() if pair[0] == name}


def _plain(default: Any) -> Any:
    return list(default) if isinstance(default, tuple) else default


def opening() -> dict[str, str]:
    """What Diffusers' ``from_pretrained`` takes, and its default as it is written there."""
    function = inspect.unwrap(DIFFUSERS.from_pretrained.__func__)
    pairs = re.findall(r"kwargs\.pop\(\"(\w+)\", ([^()]*?)\)", inspect.getsource(function))
    return dict(pairs)


DIFFUSERS = diffusers.DiffusionPipeline


def test_arguments_of_opening() -> None:
    """All of them, with Diffusers' defaults, change nothing."""
    found = opening()
    assert {"torch_dtype", "variant", "device_map", "use_safetensors", "token"} <= found.keys()
    written = {"True": True, "False": False, "None": None}
    given = {name: written[default] for name, default in found.items() if default in written}
    assert len(given) >= len(found) - 2  # of two the default is a name
    assert type(DiffusionPipeline.from_pretrained(**given)) is not DiffusionPipeline


@pytest.mark.parametrize("name", CLASSES)
def test_settings_of_a_class(name: str) -> None:
    """What a class is made of besides models and tokenizers is known where a checkpoint has it not."""
    taken = inspect.signature(getattr(diffusers, name).__init__).parameters
    settings = {key for key, one in taken.items() if one.default not in (inspect._empty, None)}
    assert settings | (taken.keys() & {"add_watermarker", "sample_sigmas", "id2label"}) <= {
        *SETTINGS
    }


#: Attributes of a pipeline that programs read, by kind of checkpoint.
SHOWN = {
    "sd1": ("vae_scale_factor", "lora_scale"),
    "sdxl": ("default_sample_size", "vae_scale_factor"),
    "control": ("control_image_processor",),
    "sd3": ("tokenizer_max_length", "patch_size", "default_sample_size", "vae_scale_factor"),
    "flux": ("tokenizer_max_length", "default_sample_size", "vae_scale_factor"),
    "flux-kontext": ("latent_channels", "tokenizer_max_length"),
    "chroma": ("default_sample_size", "vae_scale_factor"),
    "klein": ("tokenizer_max_length", "default_sample_size", "vae_scale_factor"),
    "qwen-image": ("tokenizer_max_length", "default_sample_size", "vae_scale_factor"),
    "hunyuan-dit": ("default_sample_size",),
    "lumina2": ("default_sample_size",),
}


@pytest.mark.parametrize("kind", SHOWN)
def test_attributes_of_a_pipeline(checkpoint: Callable[[str], Path], kind: str) -> None:
    theirs = diffusers.DiffusionPipeline.from_pretrained(checkpoint(kind))
    ours = DiffusionPipeline.from_pretrained(checkpoint(kind))
    for name in SHOWN[kind]:
        wanted, found = getattr(theirs, name), getattr(ours, name)
        if hasattr(wanted, "config"):
            known = found.config.keys() if hasattr(found.config, "keys") else vars(found.config)
            wanted, found = (
                {key: getattr(one.config, key) for key in known} for one in (wanted, found)
            )
        assert found == wanted, name


def test_kwargs_of_attentions_read_back_as_they_were_given(
    checkpoint: Callable[[str], Path],
) -> None:
    call = {"num_inference_steps": 1, "height": 16, "width": 16, "output_type": "latent"}
    read = []
    for library in (diffusers, perfuse):
        pipe = library.DiffusionPipeline.from_pretrained(checkpoint("sd3"))
        for given in ({}, {"scale": 0.5}, None):
            pipe("red", joint_attention_kwargs=given, **call)
            read.append(pipe.joint_attention_kwargs)
    assert read[:3] == read[3:] == [{}, {"scale": 0.5}, None]
