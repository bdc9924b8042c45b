"""Steps that run a part of the denoiser, with what the rest of it gave at a step before."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from perfuse.contract.control import Control
from perfuse.contract.guider import Guider
from perfuse.contract.spec import Array
from perfuse.contract.steps import State, Step, Task, Tools
from perfuse.schedulers import Schedule
from perfuse.tasks.denoise import Batches, answers, moment_of
from perfuse.tasks.forecast import check_counts

__all__ = ["reusing"]


def reusing(task: Task, entry: str, state: str, every: int) -> Task:
    """A task whose denoiser runs as a whole once in some steps, and another entry in between.

    Args:
        task: The task.
        entry: The other entry.
        state: The denoiser's output that is this entry's input.
        every: In how many steps the whole denoiser runs once.

    Raises:
        InputError: the task has no loop of the usual steps.
    """
    begin = Step(name="begin_reusing", run=_Begin(every), outputs=("kept_states",))
    predict = Step(
        name="predict", run=_Predict(entry, state, every), outputs=("predictions", "kept_states")
    )
    return task.insert(begin, after="prepare_schedule").replace("predict", predict)


@dataclass(frozen=True, kw_only=True)
class Kept:
    """What the whole denoiser gave for later steps."""

    step: int
    #: By branch, then by name, each [pictures, …].
    states: Mapping[str, Mapping[str, Array]]


@dataclass(frozen=True)
class _Begin:
    """Nothing is kept when a run begins."""

    every: int

    def __call__(self, tools: Tools, schedule: Schedule) -> State:
        check_counts(len(schedule.timesteps), every=self.every)
        return {"kept_states": None}


@dataclass(frozen=True)
class _Predict:
    """The prediction for each branch, of the whole denoiser or of a part of it."""

    entry: str
    state: str
    every: int

    def __call__(
        self,
        tools: Tools,
        index: int,
        samples: tuple[Array, ...],
        schedule: Schedule,
        timesteps: Array,
        batches: Batches,
        guider: Guider,
        kept_states: Kept | None,
        controls: Sequence[Control] = (),
    ) -> State:
        kept = kept_states
        given = (tools, index, samples, schedule, timesteps, batches, guider, controls)
        running = dict(batches.groups(guider.running(moment_of(schedule, index))))
        if kept is None or self._is_old(kept, index, running.get(None, ())):
            found = answers(*given)
            states = {
                name: {self.state: outputs[self.state]}
                for name, outputs in found.items()
                if name in running.get(None, ())
            }
            kept = Kept(step=index, states=states)
        else:
            found = answers(*given, denoiser=self.entry, kept=kept.states)
        predictions = {name: outputs["out_sample"] for name, outputs in found.items()}
        return {"predictions": predictions, "kept_states": kept}

    def _is_old(self, kept: Kept, index: int, names: tuple[str, ...]) -> bool:
        """Whether it is the whole denoiser's turn, or has not run for one of the branches."""
        return index - kept.step >= self.every or not set(names) <= kept.states.keys()
