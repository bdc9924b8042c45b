"""Previews of a running task: the clean sample (x0) that each denoising step predicts."""

from typing import Any

from perfuse.contract.spec import Array
from perfuse.contract.steps import Event, Input, Loop, Task, Tools

__all__ = ["decoded", "guess"]

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


def decoded(tools: Tools, task: Task, event: Event, latents: Array) -> Any:
    """Decode a predicted clean sample with the steps that follow the loop.

    No random number is drawn and the event's state does not change, so the final pictures do not
    depend on previews.

    Args:
        tools: The pipeline that runs the task.
        task: The task that is running.
        event: The event of the denoising step.
        latents: What ``guess`` returned for it.

    Returns:
        The task's ``images``, from this sample.
    """
    state = {**event.state, "samples": (latents,)}
    at = next(i for i, node in enumerate(task.steps) if node.name == event.step)
    inputs = dict.fromkeys(state, Input())
    rest = Task(name=f"{task.name}, preview", inputs=inputs, steps=task.steps[at + 1 :])
    for one in rest.run(tools, state):
        state = {**state, **one.state}
    return state["images"]
