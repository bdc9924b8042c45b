"""One diffusion pipeline, through any hardware, and proof that it is still the same pipeline.

>>> from perfuse import DiffusionPipeline
>>> pipe = DiffusionPipeline.from_pretrained(backend="torch:cpu")  # the bundled `shapes` model
>>> pipe("a red circle", num_inference_steps=2, seed=0).images[0].size
(64, 64)

Importing perfuse imports neither torch nor an engine; each name below is loaded on first use, and so
is each scheduler, each pipeline class and each model: ``from perfuse import EulerDiscreteScheduler,
StableDiffusionPipeline, UNet2DConditionModel``. A type checker sees such a class when it is imported
from its own file: ``from perfuse.schedulers.euler import ...``.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from perfuse._lazy import diffusers_paths, lazy

if TYPE_CHECKING:
    from perfuse.arrays.noise import NoiseSource as NoiseSource
    from perfuse.bridge.accelerate import Acceleration as Acceleration
    from perfuse.bridge.accelerate import EntryReport as EntryReport
    from perfuse.bridge.accelerate import accelerate as accelerate
    from perfuse.bridge.accelerate import load_accelerated as load_accelerated
    from perfuse.bridge.patching import Patch as Patch
    from perfuse.bridge.patching import patch_diffusers as patch_diffusers
    from perfuse.contract.architecture import Architecture as Architecture
    from perfuse.contract.backend import Backend as Backend
    from perfuse.contract.backend import ExecutionReport as ExecutionReport
    from perfuse.contract.backend import Program as Program
    from perfuse.contract.backend import Request as Request
    from perfuse.contract.backend import Support as Support
    from perfuse.contract.backend import SupportLevel as SupportLevel
    from perfuse.contract.component import Component as Component
    from perfuse.contract.component import Recipe as Recipe
    from perfuse.contract.exporter import Exporter as Exporter
    from perfuse.contract.guider import Branch as Branch
    from perfuse.contract.guider import Guider as Guider
    from perfuse.contract.guider import Moment as Moment
    from perfuse.contract.guider import Perturbation as Perturbation
    from perfuse.contract.hooks import BackendManifest as BackendManifest
    from perfuse.contract.hooks import ExporterManifest as ExporterManifest
    from perfuse.contract.hooks import GuiderManifest as GuiderManifest
    from perfuse.contract.hooks import PipelineManifest as PipelineManifest
    from perfuse.contract.hooks import ReaderManifest as ReaderManifest
    from perfuse.contract.hooks import SourceManifest as SourceManifest
    from perfuse.contract.hooks import TransformManifest as TransformManifest
    from perfuse.contract.hooks import hookimpl as hookimpl
    from perfuse.contract.latents import LatentSpec as LatentSpec
    from perfuse.contract.latents import PixelLatents as PixelLatents
    from perfuse.contract.limits import Limits as Limits
    from perfuse.contract.reader import Reader as Reader
    from perfuse.contract.source import Source as Source
    from perfuse.contract.spec import Dim as Dim
    from perfuse.contract.spec import PipelineSpec as PipelineSpec
    from perfuse.contract.spec import Role as Role
    from perfuse.contract.spec import Signature as Signature
    from perfuse.contract.spec import TensorSpec as TensorSpec
    from perfuse.contract.steps import Choice as Choice
    from perfuse.contract.steps import Event as Event
    from perfuse.contract.steps import Input as Input
    from perfuse.contract.steps import Loop as Loop
    from perfuse.contract.steps import Step as Step
    from perfuse.contract.steps import Task as Task
    from perfuse.contract.steps import Tools as Tools
    from perfuse.contract.steps import When as When
    from perfuse.contract.steps import step as step
    from perfuse.contract.target import Device as Device
    from perfuse.contract.target import Placement as Placement
    from perfuse.contract.target import Target as Target
    from perfuse.contract.transform import Plan as Plan
    from perfuse.contract.transform import Transform as Transform
    from perfuse.errors import PerfuseError as PerfuseError
    from perfuse.models.auto import AutoModel as AutoModel
    from perfuse.run.auto import AutoPipelineForImage2Image as AutoPipelineForImage2Image
    from perfuse.run.auto import AutoPipelineForInpainting as AutoPipelineForInpainting
    from perfuse.run.auto import AutoPipelineForText2Image as AutoPipelineForText2Image
    from perfuse.run.export import exported as exported
    from perfuse.run.pipeline import DiffusionPipeline as DiffusionPipeline
    from perfuse.run.pipeline import PipelineOutput as PipelineOutput
    from perfuse.schedulers import Schedule as Schedule
    from perfuse.schedulers import Scheduler as Scheduler
    from perfuse.sources.artifact import Artifact as Artifact
    from perfuse.sources.checkpoint import Checkpoint as Checkpoint
    from perfuse.sources.store import ArtifactStore as ArtifactStore
    from perfuse.sources.tokenizer import Tokenizer as Tokenizer
    from perfuse.tasks.guiders import AdaptiveProjectedGuidance as AdaptiveProjectedGuidance
    from perfuse.tasks.guiders import AdaptiveProjectedMixGuidance as AdaptiveProjectedMixGuidance
    from perfuse.tasks.guiders import AutoGuidance as AutoGuidance
    from perfuse.tasks.guiders import ClassifierFreeGuidance as ClassifierFreeGuidance
    from perfuse.tasks.guiders import (
        ClassifierFreeZeroStarGuidance as ClassifierFreeZeroStarGuidance,
    )
    from perfuse.tasks.guiders import EmbeddedGuidance as EmbeddedGuidance
    from perfuse.tasks.guiders import FrequencyDecoupledGuidance as FrequencyDecoupledGuidance
    from perfuse.tasks.guiders import InstructPix2PixGuidance as InstructPix2PixGuidance
    from perfuse.tasks.guiders import LengthPreservingGuidance as LengthPreservingGuidance
    from perfuse.tasks.guiders import MagnitudeAwareGuidance as MagnitudeAwareGuidance
    from perfuse.tasks.guiders import NoGuidance as NoGuidance
    from perfuse.tasks.guiders import PAGGuidance as PAGGuidance
    from perfuse.tasks.guiders import PerturbedAttentionGuidance as PerturbedAttentionGuidance
    from perfuse.tasks.guiders import SkipLayerGuidance as SkipLayerGuidance
    from perfuse.tasks.guiders import SmoothedEnergyGuidance as SmoothedEnergyGuidance
    from perfuse.tasks.guiders import (
        TangentialClassifierFreeGuidance as TangentialClassifierFreeGuidance,
    )
    from perfuse.tasks.guiders import TruncatedGuidance as TruncatedGuidance

__version__ = "0.1.0"

_get, __dir__ = lazy(
    __name__,
    {
        "contract.architecture": ("Architecture",),
        "contract.backend": (
            "Backend",
            "ExecutionReport",
            "Program",
            "Request",
            "Support",
            "SupportLevel",
        ),
        "contract.component": (
            "Component",
            "Recipe",
        ),
        "contract.exporter": ("Exporter",),
        "contract.guider": (
            "Branch",
            "Guider",
            "Moment",
            "Perturbation",
        ),
        "contract.hooks": (
            "BackendManifest",
            "ExporterManifest",
            "GuiderManifest",
            "PipelineManifest",
            "ReaderManifest",
            "SourceManifest",
            "TransformManifest",
            "hookimpl",
        ),
        "contract.latents": (
            "LatentSpec",
            "PixelLatents",
        ),
        "contract.limits": ("Limits",),
        "contract.reader": ("Reader",),
        "contract.source": ("Source",),
        "contract.spec": (
            "Dim",
            "PipelineSpec",
            "Role",
            "Signature",
            "TensorSpec",
        ),
        "contract.steps": (
            "Choice",
            "Event",
            "Input",
            "Loop",
            "Step",
            "Task",
            "Tools",
            "When",
            "step",
        ),
        "contract.target": (
            "Device",
            "Placement",
            "Target",
        ),
        "contract.transform": (
            "Plan",
            "Transform",
        ),
        "arrays.noise": ("NoiseSource",),
        "bridge.accelerate": ("Acceleration", "EntryReport", "accelerate", "load_accelerated"),
        "bridge.patching": ("Patch", "patch_diffusers"),
        "errors": ("PerfuseError",),
        "models.auto": ("AutoModel",),
        "run.auto": (
            "AutoPipelineForImage2Image",
            "AutoPipelineForInpainting",
            "AutoPipelineForText2Image",
        ),
        "run.export": ("exported",),
        "run.pipeline": (
            "DiffusionPipeline",
            "PipelineOutput",
        ),
        "sources.artifact": ("Artifact",),
        "sources.checkpoint": ("Checkpoint",),
        "sources.store": ("ArtifactStore",),
        "sources.tokenizer": ("Tokenizer",),
    },
    rooms=("schedulers", "tasks.guiders", "run.pipelines"),
)


diffusers_paths()


def __getattr__(name: str) -> Any:
    """A name of the table above; or one that is not in ``__all__``.

    These are models, which are torch modules, and ``from perfuse import *`` loads no torch; a
    plugin's pipeline; and what Diffusers alone has.
    """
    try:
        return _get(name)
    except AttributeError:
        found = None
        if name == "logging":
            return import_module("perfuse.utils.logging")
        if name.endswith("Pipeline"):
            return getattr(import_module("perfuse.run.pipelines"), name)
        if name[0].isupper() and not name.isupper():
            found = import_module("perfuse.models.registry").model_class(name)
        if found is None:
            found = import_module("perfuse._diffusers").borrowed(__name__, name)
        return found
