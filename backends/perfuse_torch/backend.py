"""Runs a component's torch module as it is: the definition of correct."""

import importlib.util
from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from perfuse.arrays import is_torch, to_numpy
from perfuse.backend import (
    Array,
    Backend,
    Component,
    Device,
    ExecutionReport,
    Program,
    Request,
    Support,
    SupportLevel,
    Target,
)
from perfuse.errors import (
    DeviceNotFoundError,
    ExecutionError,
    InputError,
    UnsupportedError,
)
from perfuse.store import ArtifactStore
from perfuse_exporters.capture import replace_tensors

__all__ = ["Torch"]

_DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
_ACCELERATORS = ("cuda", "hpu", "xpu", "mps")
_OPTIONS = ("compile", "tf32", "channels_last")


class Torch(Backend):
    """PyTorch in eager mode, or compiled where the ``compile`` option asks for it."""

    name: ClassVar[str] = "torch"

    def devices(self) -> Sequence[Device]:
        """Every device that this torch sees, accelerators first."""
        if importlib.util.find_spec("habana_frameworks") is not None:
            importlib.import_module("habana_frameworks.torch")  # gives torch its hpu device
        found = []
        for kind in _ACCELERATORS:
            module = getattr(torch, kind, None)
            if module is None or not module.is_available():
                continue
            count = module.device_count() if hasattr(module, "device_count") else 1
            for index in range(count):
                found.append(
                    Device(
                        name=kind if count == 1 else f"{kind}:{index}",
                        description=_describe(module, index, kind),
                        precisions=tuple(_DTYPES),
                    )
                )
        found.append(Device(name="cpu", description="CPU", precisions=tuple(_DTYPES)))
        return found

    def supports(self, request: Request) -> Support:
        """Everything, on the devices that are there."""
        if request.precision not in _DTYPES:
            return Support(
                level=SupportLevel.UNSUPPORTED,
                reason=f"torch runs {', '.join(_DTYPES)} here, not {request.precision}.",
            )
        return Support(level=SupportLevel.FULL)

    def prepare(self, component: Component, target: Target, store: ArtifactStore) -> Program:
        """Build the module, move it to the device, keep it there."""
        options = _read_options(target.options)
        device = self._device(target.device)
        if component.build is None:
            raise UnsupportedError(
                f"{component.name} was to run on torch; the model is an exported folder "
                f"({', '.join(component.files)}), which has no torch module. Use the checkpoint "
                "it came from, or the backend of its format."
            )
        if device.type == "cuda":
            # Off unless asked for: ten bits of mantissa are not float32.
            torch.backends.cuda.matmul.allow_tf32 = options["tf32"]
            torch.backends.cudnn.allow_tf32 = options["tf32"]
        if component.precision not in _DTYPES:
            raise UnsupportedError(
                f"{component.name} was to run in {component.precision}; torch runs "
                f"{', '.join(_DTYPES)} here."
            )
        dtype = _DTYPES[component.precision]
        # The module may be the user's own; what has the place and the dtype already is shared.
        module = replace_tensors(
            component.build(),
            lambda tensor: tensor.to(device, dtype if tensor.is_floating_point() else None),
        )
        if options["channels_last"]:
            module = module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        if options["compile"]:
            module.compile(dynamic=not component.static)
        return TorchProgram(component, module, device, options)

    def _device(self, name: str | None) -> torch.device:
        devices = self.devices()
        if name is None:
            return torch.device(devices[0].name)
        known = [device.name for device in devices]
        # cuda and cuda:0 are the same device whichever way torch counts them
        if name not in known and name not in {known_name.split(":")[0] for known_name in known}:
            alone = name.removesuffix(":0")
            if alone not in known:
                raise DeviceNotFoundError(
                    f"Device {name!r} was asked for; torch {torch.__version__} sees "
                    f"{', '.join(known)}. For an NVIDIA GPU install torch's CUDA build."
                )
        return torch.device(name)


def _describe(module: object, index: int, kind: str) -> str:
    name = getattr(module, "get_device_name", None)
    return str(name(index)) if name is not None else kind.upper()


def _read_options(given: Mapping[str, str]) -> dict[str, bool]:
    unknown = [name for name in given if name not in _OPTIONS]
    if unknown:
        raise InputError(
            f"The torch backend was given the option {', '.join(unknown)}; it has "
            f"{', '.join(_OPTIONS)}, each true or false."
        )
    options = {name: str(given.get(name, "false")).lower() for name in _OPTIONS}
    wrong = [name for name, value in options.items() if value not in ("true", "false")]
    if wrong:
        raise InputError(f"The option {wrong[0]} must be true or false; got {given[wrong[0]]!r}.")
    return {name: value == "true" for name, value in options.items()}


class TorchProgram(Program):
    """A module on a device. Tensors in, tensors out; numpy arrays in, numpy arrays out."""

    def __init__(
        self,
        component: Component,
        module: nn.Module,
        device: torch.device,
        options: Mapping[str, bool],
    ) -> None:
        self.signature = component.signature
        self.torch_device = str(device)
        self._component = component
        self._module: nn.Module | None = module
        self._device = device
        self._options = options
        precision = _DTYPES[component.precision]
        self._dtypes = {
            tensor.name: precision if tensor.dtype == "float" else getattr(torch, tensor.dtype)
            for tensor in self.signature.inputs
        }

    def __call__(self, **inputs: Array) -> dict[str, Array]:
        """Run once; numpy arrays out only where every array in was one."""
        if self._module is None:
            raise ExecutionError(f"{self._component.name} was closed; prepare it again.")
        dims = self.signature.bind(inputs, component=self._component.name)
        self._component.spec.check_dims(dims)
        tensors = [self._tensor(inputs[name], dtype) for name, dtype in self._dtypes.items()]
        try:
            with torch.inference_mode():
                outputs = self._module(*tensors)
        except RuntimeError as exc:
            raise ExecutionError(
                f"{self._component.name} on torch:{self._device} failed: {str(exc).splitlines()[0]}"
            ) from exc
        keep = any(is_torch(array) for array in inputs.values())
        return {
            name: tensor.float() if keep else to_numpy(tensor)
            for name, tensor in zip(self.signature.output_names, outputs, strict=True)
        }

    def _tensor(self, array: Array, dtype: torch.dtype) -> Tensor:
        if not is_torch(array):
            # torch warns of memory that it could not write to; nothing here writes.
            array = torch.as_tensor(array if array.flags.writeable else array.copy())
        tensor: Tensor = array
        tensor = tensor.to(device=self._device, dtype=dtype, non_blocking=True)
        if self._options["channels_last"] and tensor.ndim == 4:
            tensor = tensor.contiguous(memory_format=torch.channels_last)
        return tensor

    def report(self) -> ExecutionReport:
        return ExecutionReport(
            device=str(self._device),
            precision=self._component.precision,
            engine=f"torch {torch.__version__}",
            details=dict(self._options),
        )

    def close(self) -> None:
        self._module = None
