"""Watches an engine's own calls from outside: how long each one takes, and the last one to replay."""

import importlib
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

#: For each backend the public methods of its engine that run a graph: module, class, method.
_CALLS = {
    "torch": (("perfuse.models", "UNet2DConditionModel", "forward"),),
    "onnxruntime": (
        ("onnxruntime", "InferenceSession", "run"),
        ("onnxruntime", "InferenceSession", "run_with_iobinding"),
        ("onnxruntime", "InferenceSession", "run_with_ort_values"),
    ),
    "openvino": (
        ("openvino", "InferRequest", "infer"),
        ("openvino", "CompiledModel", "infer_new_request"),
        ("openvino", "CompiledModel", "__call__"),
    ),
}


@dataclass
class Watch:
    """What an engine did while it was watched."""

    seconds: float = 0.0
    calls: int = 0
    #: Runs the last call once more, with the same inputs.
    replay: Callable[[], Any] | None = field(default=None, repr=False)

    def forget(self) -> None:
        self.seconds, self.calls = 0.0, 0


@contextmanager
def watching(backend: str) -> Iterator[Watch]:
    """Time every call that the block makes to a backend's engine; a call inside a call is part of it."""
    watch = Watch()
    depth = 0

    def timed(original: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            nonlocal depth
            depth += 1
            began = time.perf_counter()
            try:
                return original(*args, **kwargs)
            finally:
                took = time.perf_counter() - began
                depth -= 1
                if depth == 0:
                    watch.seconds += took
                    watch.calls += 1
                    watch.replay = lambda: original(*args, **kwargs)

        return call

    patches = []
    for module, name, method in _CALLS[backend]:
        owner = getattr(importlib.import_module(module), name)
        original = getattr(owner, method)
        patches.append(mock.patch.object(owner, method, timed(original)))
    for patch in patches:
        patch.start()
    try:
        yield watch
    finally:
        for patch in patches:
            patch.stop()
