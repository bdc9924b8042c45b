"""How long the interpreter takes for a Core ML program of Stable Diffusion 1.5's UNet, beside PyTorch.

The package holds float32 weights, is made for one size with guidance (a batch of two, 64×64 latents),
and is run as conformance runs it. PyTorch runs the module that it was captured from, eagerly.
"""

from argparse import Namespace
from collections.abc import Callable

import models
import numpy as np
from sidebyside import Row, command, compare, in_turns, say

_TARGET = 5.0


def measure(options: Namespace) -> list[Row]:
    import torch

    from perfuse.backend import Target
    from perfuse.plugins import host
    from perfuse.sources.opening import open_model
    from perfuse.sources.store import ArtifactStore
    from perfuse_conformance.cases.probes import sizes_of

    checkpoint = models.sd15(options.work, quick=options.quick)
    source = open_model(str(checkpoint))
    unet = source.spec.denoiser
    static = {**sizes_of(source.spec, unet)["usual"], "batch": unet.branches}
    component = source.component(unet.name, precision="float32", static=static)
    say(f"exporting the UNet of {checkpoint.name} to coreml, unless it has been before")
    name = "coreml-interpreter"
    store = ArtifactStore(options.work / "store")
    program = host().backend(name).prepare(component, Target(backend=name), store)
    assert component.build is not None
    module = component.build().eval()
    rng = np.random.default_rng(0)
    arrays = {
        tensor.name: rng.standard_normal(tensor.shape, dtype=np.float32)
        for tensor in component.signature.inputs
    }
    arrays["timestep"][:] = 501.0
    tensors = [torch.from_numpy(array) for array in arrays.values()]

    def eager() -> None:
        with torch.no_grad():
            module(*tensors)

    sides: dict[str, Callable[[], None]] = {
        "ours": lambda: _drop(program(**arrays)),
        "eager": eager,
    }
    say("running it by turns")
    found = in_turns(options.rounds if options.rounds is not None else 3, sides)
    return [
        compare(
            f"One call of {'the middle' if options.quick else 'an SD 1.5-sized'} UNet, interpreted",
            found["ours"],
            found["eager"],
            unit="s",
            against="PyTorch, eager",
            target=None if options.quick else _TARGET,
            note=f"a batch of two, {torch.get_num_threads()} threads; the Core ML program in "
            "float32, operation by operation in PyTorch",
        )
    ]


def _drop(outputs: object) -> None:
    """For what returns nothing: a number would be taken for seconds."""


if __name__ == "__main__":
    command(measure, __doc__)
