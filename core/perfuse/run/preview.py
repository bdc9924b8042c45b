"""Shows what a picture will be while it is drawn: the clean sample that each step aims at."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from perfuse.contract.spec import Array
from perfuse.contract.steps import Event, Input, Loop, Task, Tools

__all__ = ["decoded", "guesses"]


def guesses(task: Task, events: Iterable[Event]) -> Iterator[tuple[Event, Array | None]]:
    """Each event of a task with the present guess of the clean sample.

    The guess has the sample's shape. It is ``None`` for what is not a step of the denoising loop.
    Nothing is computed twice and no noise is drawn: the pictures stay what they are.
    """
    loops = {node.name for node in task.steps if isinstance(node, Loop)}
    before: Any = None
    for event in events:
        state, guess = event.state, None
        if event.step in loops and before is not None:
            guess = state["schedule"].denoised(state["index"], before, state["prediction"])
        yield event, guess
        before = state.get("samples")  # what the next step begins with


def decoded(task: Task, tools: Tools, state: Mapping[str, Any], guess: Array) -> Any:
    """A guess as pictures: the steps that follow the loop, done with it in the sample's place.

    Args:
        task: The task that is running.
        tools: The pipeline that runs it.
        state: That of the event of the guess; it is not changed.
        guess: From ``guesses``.

    Returns:
        What the task's ``images`` would be.
    """
    at = next(i for i, node in enumerate(task.steps) if isinstance(node, Loop))
    now: Mapping[str, Any] = {**state, "samples": (guess,)}
    known = {name: Input() for name in now}
    rest = Task(name=f"{task.name}, preview", inputs=known, steps=task.steps[at + 1 :])
    for event in rest.run(tools, now):
        now = event.state
    return now["images"]
