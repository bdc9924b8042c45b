"""The models that the suite brings: small random ones of each family, made in the cache."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from perfuse.sources import ArtifactStore, sha256, tool_versions

__all__ = ["RANDOM_MODELS", "RandomModel", "arguments_of", "path_of", "transforms_of"]


@dataclass(frozen=True, kw_only=True)
class RandomModel:
    """A small random model: a checkpoint, and what is put on it."""

    #: One of ``perfuse_conformance.checkpoints.KINDS``; or, of a pipeline that runs through Diffusers, the
    #: class that ``perfuse_conformance.bridged`` has a recipe for.
    kind: str
    #: Transforms, ``"NAME:key=value"``.
    transforms: tuple[str, ...] = ()


#: A denoiser's worse versions, so many that every guider finds the one that it runs; the blur that has
#: an end has another graph than the endless one.
_WORSE = (
    "perturbed:kind=identity,layers=mid",
    "perturbed:kind=blur,layers=mid,amount=-1.0",
    "perturbed:kind=blur,layers=mid,amount=0.7",
    "perturbed:kind=skip,layers=mid",
)
#: The modules that say how a checkpoint is made.
_RECIPE = (
    "adapters",
    "checkpoint_parts",
    "checkpoints",
    "language_checkpoints",
    "language_parts",
)
_STEERED = ("prompts", "freeu", "t-gate:gate=2")

#: What ``--model`` may name besides a checkpoint. Their pictures mean nothing; their numbers tell as
#: much as a trained model's, and every weight is different from zero.
RANDOM_MODELS: Mapping[str, RandomModel] = MappingProxyType(
    {
        "random-sd": RandomModel(kind="sd1"),
        "random-sd-checked": RandomModel(kind="sd1-strict"),
        "random-sd2": RandomModel(kind="sd2"),
        "random-sdxl": RandomModel(kind="sdxl"),
        "random-refiner": RandomModel(kind="refiner"),
        "random-lcm": RandomModel(kind="lcm"),
        "random-ddpm": RandomModel(kind="ddpm"),
        "random-inpaint": RandomModel(kind="inpaint"),
        "random-pix2pix": RandomModel(kind="pix2pix"),
        "random-depth": RandomModel(kind="depth"),
        "random-upscale": RandomModel(kind="upscale"),
        "random-variation": RandomModel(kind="variation"),
        "random-unclip": RandomModel(kind="unclip"),
        "random-estimated": RandomModel(kind="depth-estimated"),
        "random-latent-upscaler": RandomModel(kind="latent-upscaler"),
        "random-control": RandomModel(kind="control"),
        "random-union": RandomModel(kind="union"),
        "random-adapter": RandomModel(kind="adapter"),
        "random-ip-adapter": RandomModel(kind="ip-adapter"),
        "random-edited": RandomModel(kind="edited", transforms=_WORSE[:1]),
        "random-guided": RandomModel(kind="sd1-small", transforms=_WORSE),
        "random-steered": RandomModel(kind="sd1-small", transforms=_STEERED),
        "random-shallow": RandomModel(kind="sd1", transforms=("deepcache:every=2",)),
        "random-int8": RandomModel(kind="sd1", transforms=("storage:scheme=int8,component=unet",)),
        "random-cached": RandomModel(kind="sd3", transforms=("first-block:threshold=0.4,last=1",)),
        "random-flux": RandomModel(kind="flux"),
        "random-flux-ip-adapter": RandomModel(kind="flux-ip-adapter"),
        "random-sd3-ip-adapter": RandomModel(kind="sd3-ip-adapter"),
        "random-z-image": RandomModel(kind="z-image"),
        "random-sd3": RandomModel(kind="sd3"),
        "random-pixart": RandomModel(kind="pixart-sigma"),
        "random-aura": RandomModel(kind="aura-flow"),
        "random-cogview3": RandomModel(kind="CogView3PlusPipeline"),
        "random-dit": RandomModel(kind="dit"),
        "random-hunyuan": RandomModel(kind="hunyuan-dit"),
        "random-klein": RandomModel(kind="klein"),
        "random-qwen-image": RandomModel(kind="qwen-image"),
        "random-qwen-edit": RandomModel(kind="qwen-edit-plus"),
        "random-qwen-image-21": RandomModel(kind="qwen-image-21"),
        "random-sana": RandomModel(kind="sana"),
        "random-sprint": RandomModel(kind="sana-sprint"),
        "random-chroma": RandomModel(kind="chroma"),
        "random-cogview4": RandomModel(kind="cogview4"),
        "random-lumina2": RandomModel(kind="lumina2"),
    }
)


def path_of(model: str | None) -> str | None:
    """The folder of one of ``RANDOM_MODELS``, made the first time; anything else as it is."""
    if model == "shapes":
        return None
    if not _is_random(model):
        return model
    assert model is not None
    kind = RANDOM_MODELS[model].kind

    def make(partial: Path) -> None:
        if _is_bridged(kind):
            from perfuse_conformance.bridged.measure import save_pipeline

            save_pipeline(kind, partial)
            return
        from perfuse_conformance.cases.checkpoints import make_checkpoint

        make_checkpoint(partial, kind)

    recipe = [sha256(Path(__file__).with_name(f"{name}.py")) for name in _RECIPE]
    tools = ("perfuse", "torch", *(["diffusers"] if _is_bridged(kind) else []))
    key = {"kind": kind, "recipe": recipe, "tools": tool_versions(tools)}
    return str(ArtifactStore.default().get_or_make(f"random-{kind}", key, make))


def arguments_of(model: str | None) -> dict[str, Any]:
    """What a pipeline that runs through Diffusers is called with, of ``RANDOM_MODELS``; else nothing."""
    if not _is_random(model) or model is None or not _is_bridged(RANDOM_MODELS[model].kind):
        return {}
    from perfuse_conformance.bridged.measure import call_of

    return call_of(RANDOM_MODELS[model].kind)


def transforms_of(model: str | None) -> tuple[str, ...]:
    """What is put on one of ``RANDOM_MODELS``; nothing on anything else."""
    return RANDOM_MODELS[model].transforms if _is_random(model) and model is not None else ()


def _is_bridged(kind: str) -> bool:
    return kind.endswith("Pipeline")


def _is_random(model: str | None) -> bool:
    return model is not None and model in RANDOM_MODELS and not Path(model).exists()
