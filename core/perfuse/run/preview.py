"""Shows what a picture will be while it is drawn: the clean sample that each step aims at."""

from typing import Any

from perfuse.contract.spec import Array
from perfuse.contract.steps import Event, Input, Loop, Task, Tools

__all__ = ["decoded", "guess"]

#: What the state holds after a step of denoising.
_READS = ("schedule", "index", "previous_samples", "prediction")


def guess(task: Task, event: Event) -> Array | None:
    """The clean sample that a step of denoising aimed at, of the sample's shape.

    Args:
        task: The task that is running.
        event: What it has just done; for all but a step of denoising there is no guess.
    """
    state = event.state
    if not any(node.name == event.step for node in task.steps if isinstance(node, Loop)):
        return None
    if not all(name in state for name in _READS):
        return None  # a loop of another kind
    return state["schedule"].denoised(
        state["index"], state["previous_samples"], state["prediction"]
    )


def decoded(tools: Tools, task: Task, event: Event, latents: Array) -> Any:
    """A guess as pictures: what follows the loop, done with the guess in the sample's place.

    No noise is drawn and the event's state is not changed: the pictures stay what they are.

    Args:
        tools: The pipeline that runs the task.
        task: The task that is running.
        event: The step that the guess is of.
        latents: The guess.

    Returns:
        What the task's ``images`` would be.
    """
    state = {**event.state, "samples": (latents,)}
    at = next(i for i, node in enumerate(task.steps) if node.name == event.step)
    inputs = dict.fromkeys(state, Input())
    rest = Task(name=f"{task.name}, preview", inputs=inputs, steps=task.steps[at + 1 :])
    for one in rest.run(tools, state):
        state = {**state, **one.state}
    return state["images"]
