"""Previews of a running task: the clean sample (x0) that each denoising step predicts."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from perfuse.arrays import place
from perfuse.contract.backend import Program
from perfuse.contract.latents import LatentSpec
from perfuse.contract.spec import Array, Role
from perfuse.contract.steps import Event, Input, Loop, State, Step, Task, Tools, step
from perfuse.errors import InputError
from perfuse.models.registry import latents_of
from perfuse.run.adding import components_of
from perfuse.run.precisions import general

if TYPE_CHECKING:
    from perfuse.run.parts import Parts

__all__ = ["PreviewDecoder", "decoded", "guess", "preview_decoder"]

#: The names in the state after a denoising step.
_READS = ("schedule", "index", "previous_samples", "prediction")


def guess(task: Task, event: Event) -> Array | None:
    """The clean sample (x0) that a denoising step predicted, of the sample's shape.

    Args:
        task: The task that is running.
        event: The event of the step.

    Returns:
        ``None`` if the event is not that of a denoising step.
    """
    state = event.state
    if not any(node.name == event.step for node in task.steps if isinstance(node, Loop)):
        return None
    if not all(name in state for name in _READS):
        return None  # a loop that does not denoise
    return state["schedule"].denoised(
        state["index"], state["previous_samples"], state["prediction"]
    )


@dataclass(frozen=True, kw_only=True)
class PreviewDecoder:
    """A small latent decoder that draws previews in the place of the pipeline's own."""

    program: Program
    #: The latents that it was trained for.
    latents: LatentSpec

    def pictures(self, tools: Tools, latents: Array, height: int, width: int) -> Array:
        """Pictures [B, C, H, W] in about [-1, 1] of the pipeline's latents."""
        unpacked = tools.spec.latents.unpack(latents, height, width)
        given = place(self.latents.decode(unpacked), self.program.torch_device)
        return self.program(latent_sample=given)["sample"]


def preview_decoder(pipe: "Parts", vae: Any, *, offline: bool | None = None) -> PreviewDecoder:
    """Prepare a decoder for previews, where the pipeline's own latent decoder runs.

    Args:
        pipe: The pipeline.
        vae: An autoencoder of its latents, such as TAESD: the model, its folder or Hub id.
        offline: Use only what the Hub's cache holds.

    Raises:
        CheckpointError: the folder cannot be read.
        InputError: it is no autoencoder, or one of other latents.
    """
    components = components_of(
        "preview_vae", vae, precision=general(pipe.precision), offline=offline
    )
    decoders = [one for one in components if one.spec.role == Role.LATENT_DECODER]
    if not decoders or len(decoders[0].spec.signature.inputs) != 1:
        raise InputError(
            f"Previews were to be drawn by a {components[0].spec.class_name}, which does not decode "
            "latents alone. Give a small autoencoder of this model's latents, such as TAESD."
        )
    decoder, spec = decoders[0], pipe.spec
    latents = latents_of({decoder.spec.name: decoder.spec})
    if latents.channels != spec.latents.channels:
        raise InputError(
            f"Previews were to be drawn by an autoencoder of {latents.channels} latent channels; "
            f"this model's latents have {spec.latents.channels}. Give one that was made for it."
        )
    beside = (*spec.having(Role.LATENT_DECODER), spec.denoiser)[0].name
    return PreviewDecoder(program=pipe.prepare_beside(decoder, beside), latents=latents)


def decoded(
    tools: Tools, task: Task, event: Event, latents: Array, decoder: PreviewDecoder | None = None
) -> Any:
    """Decode a predicted clean sample with the steps that follow the loop.

    No random number is drawn and the event's state does not change, so the final pictures do not
    depend on previews.

    Args:
        tools: The pipeline that runs the task.
        task: The task that is running.
        event: The event of the denoising step.
        latents: What ``guess`` returned for it.
        decoder: What decodes it instead of the pipeline's latent decoder.

    Returns:
        The task's ``images``, from this sample: PIL images.
    """
    state = {**event.state, "samples": (latents,), "output_type": "pil"}
    at = next(i for i, node in enumerate(task.steps) if node.name == event.step)
    inputs = dict.fromkeys(state, Input())
    rest = Task(name=f"{task.name}, preview", inputs=inputs, steps=task.steps[at + 1 :])
    if decoder is not None:
        rest = rest.replace("decode", _decode_by(decoder))
    for one in rest.run(tools, state):
        state = {**state, **one.state}
    return state["images"]


def _decode_by(decoder: PreviewDecoder) -> Step:
    @step(outputs=("decoded",))
    def decode(tools: Tools, samples: tuple[Array, ...], height: int, width: int) -> State:
        return {"decoded": decoder.pictures(tools, samples[0], height, width)}

    return decode
