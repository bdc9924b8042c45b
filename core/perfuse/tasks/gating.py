"""Loops whose last steps have no guidance, and what the cross-attentions gave with it before."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from perfuse.contract.guider import Guider
from perfuse.contract.spec import Array
from perfuse.contract.steps import State, Step, Task, Tools
from perfuse.errors import InputError
from perfuse.tasks.forecast import check_counts
from perfuse.tasks.guiders.limited import limited
from perfuse.tasks.reusing import in_parts_already

if TYPE_CHECKING:
    from perfuse.contract.control import Control
    from perfuse.schedulers import Schedule
    from perfuse.tasks.denoise import Batches

__all__ = ["gating"]


def gating(task: Task, gate: int) -> Task:
    """A task without guidance after its first steps, and with the cross-attentions of these.

    Args:
        task: The task, whose denoiser gives ``attention_N``, and takes ``gate`` and ``kept_attention_N``.
        gate: How many are its first steps.

    Raises:
        InputError: the denoiser runs in parts already.
    """
    in_parts_already(task)
    outputs = ("guider", "kept_attention")
    begin = Step(name="begin_gating", run=_Begin(gate), outputs=outputs)
    predict = Step(name="predict", run=_Predict(gate), outputs=("predictions", "kept_attention"))
    return task.insert(begin, after="prepare_schedule").replace("predict", predict)


@dataclass(frozen=True)
class _Begin:
    """The guider, at the first steps alone; nothing is kept when a run begins."""

    gate: int

    def __call__(self, tools: Tools, guider: Guider, schedule: "Schedule") -> State:
        total = len(schedule.timesteps)
        check_counts(total, gate=self.gate)
        if any(branch.perturbation is not None for branch in guider.branches):
            raise InputError(
                f"t-gate was asked for with {type(guider).__name__}, which runs a worse version of the "
                "denoiser, and that has no gate. Use another guider, or leave out t-gate."
            )
        stop = min((self.gate + 0.5) / total, 1.0)  # in the middle of a step: no rounding moves it
        return {"guider": limited(guider, 0.0, stop), "kept_attention": None}


@dataclass(frozen=True)
class _Predict:
    """The prediction for each branch, after the gate with what the cross-attentions gave before it.

    What they gave is the mean of the branches (Zhang et al. 2024, arXiv:2404.02747, section 4).
    """

    gate: int

    def __call__(
        self,
        tools: Tools,
        index: int,
        samples: tuple[Array, ...],
        schedule: "Schedule",
        timesteps: Array,
        batches: "Batches",
        guider: Guider,
        kept_attention: Mapping[str, Array] | None,
        controls: Sequence["Control"] = (),
    ) -> State:
        from perfuse.tasks.denoise import answers

        ask = partial(
            answers, tools, index, samples, schedule, timesteps, batches, guider, controls
        )
        if index < self.gate or kept_attention is None or len(guider.branches) == 1:
            found = ask()
            kept_attention = _mean(found)
        else:
            from perfuse.arrays import zeros  # listing transforms loads no numpy

            closed = zeros((len(samples[0]),), samples[0]) + 1
            given = {"gate": closed, **kept_attention}
            found = ask(kept={branch.name: given for branch in guider.branches})
        predictions = {name: outputs["out_sample"] for name, outputs in found.items()}
        return {"predictions": predictions, "kept_attention": kept_attention}


def _mean(found: Mapping[str, Mapping[str, Array]]) -> dict[str, Array]:
    """What the cross-attentions gave, [pictures, C, h, w], as the inputs that it becomes."""
    branches = list(found.values())
    names = [name for name in branches[0] if name.startswith("attention_")]
    return {f"kept_{name}": sum(one[name] for one in branches) / len(branches) for name in names}
