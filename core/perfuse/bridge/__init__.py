"""Any Diffusers pipeline on any backend: its modules' calls are computed by captured graphs.

``perfuse.accelerate(pipe, backend="openvino")`` leaves a pipeline what it is: its class, its
components, their configs, processors and adapters. Only what a call of a component computes comes
from a program of the backend: the first call of a kind is recorded, captured and lowered.
"""

from perfuse.bridge.calling import call_by_name, inputs_of

__all__ = ["call_by_name", "inputs_of"]
