"""Diffusers' ``enable_…`` and ``disable_…`` methods: what each does here, or what takes its place."""

import warnings
from typing import Any

from perfuse.contract.spec import Role
from perfuse.errors import InputError
from perfuse.plugins import host
from perfuse.run.calling import Calling
from perfuse.run.transforms import find_transforms

__all__ = ["Switches"]

_said: set[str] = set()


def _say_once(text: str) -> None:
    if text not in _said:
        _said.add(text)
        warnings.warn(text, stacklevel=3)


class Switches(Calling):
    """Switches of a pipeline: memory, tiling, and those that need nothing done here."""

    #: Whether the steps decode and encode pictures in tiles.
    vae_tiling: bool = False
    #: Whether they decode and encode one picture at a time.
    vae_slicing: bool = False

    # Autoencoder

    def enable_vae_tiling(self) -> None:
        """Decode and encode large pictures in overlapping tiles, for less memory."""
        self.vae_tiling = True

    def disable_vae_tiling(self) -> None:
        """Decode and encode pictures as a whole again."""
        self.vae_tiling = False

    def enable_vae_slicing(self) -> None:
        """Decode and encode the pictures of a batch one by one, for less memory."""
        self.vae_slicing = True

    def disable_vae_slicing(self) -> None:
        """Decode and encode the pictures of a batch together again."""
        self.vae_slicing = False

    # Attention: fused everywhere, so there is nothing to switch

    def enable_attention_slicing(self, slice_size: Any = "auto") -> None:
        """Change nothing, and say so: backends compute fused attention, which needs less memory."""
        _say_once(
            "Attention slicing was asked for; nothing is done: every backend computes fused "
            "attention, which needs no more memory, and torch slices it by itself where memory is "
            "short."
        )

    def disable_attention_slicing(self) -> None:
        """Change nothing: attention is not sliced."""

    def enable_xformers_memory_efficient_attention(self, attention_op: Any = None) -> None:
        """Change nothing, and say so: PyTorch's own attention is as frugal."""
        _say_once(
            "xformers' attention was asked for; nothing is done: PyTorch's "
            "scaled_dot_product_attention, which is used, is as frugal."
        )

    def disable_xformers_memory_efficient_attention(self) -> None:
        """Change nothing: xformers is not used."""

    def fuse_qkv_projections(self, unet: bool = True, vae: bool = True) -> None:
        """Change nothing, and say so: results are the same, and engines fuse what is faster fused."""
        _say_once(
            "Fused QKV projections were asked for; nothing is done: the results are the same, and "
            "an engine, or compile=true on torch, fuses what it runs faster fused."
        )

    def unfuse_qkv_projections(self, unet: bool = True, vae: bool = True) -> None:
        """Change nothing: projections are not fused."""

    # Memory

    def enable_model_cpu_offload(self, gpu_id: int | None = None, device: Any = None) -> None:
        """Keep one component prepared at a time: each is released before the next one is prepared.

        Args:
            gpu_id: The number of the accelerator.
            device: The device to run on; by default the one in use, or the first accelerator where
                that is the CPU.

        Raises:
            InputError: both were given.
        """
        if gpu_id is not None and device is not None:
            raise InputError("gpu_id and device were given both. Give one of them.")
        backend = self.placement.default.backend
        first = host().devices(backend)[0].name
        if device is not None:
            self.to(str(device))
        elif gpu_id is not None:
            self.to(f"{backend}:{first.partition(':')[0]}:{gpu_id}")
        elif self.placement.default.device in (None, "cpu") and first != "cpu":
            self.to(f"{backend}:{first}")
        self.close()
        self._one_at_a_time = True

    def enable_sequential_cpu_offload(self, gpu_id: int | None = None, device: Any = None) -> None:
        """Keep one component prepared at a time, and say that it is not done layer by layer."""
        _say_once(
            "Sequential offload was asked for; components are prepared and released one at a time, "
            "not layer by layer. For less memory still, store weights in fewer bits: "
            "transforms=['storage:scheme=float8_e4m3fn']."
        )
        self.enable_model_cpu_offload(gpu_id, device)

    def enable_group_offload(self, onload_device: Any = None, **settings: Any) -> None:
        """Keep one component prepared at a time, and say that it is not done by groups of layers."""
        _say_once(
            "Group offload was asked for; components are prepared and released one at a time, not "
            "by groups of layers. For less memory still, store weights in fewer bits: "
            "transforms=['storage:scheme=float8_e4m3fn']."
        )
        self.enable_model_cpu_offload(device=onload_device)

    def remove_all_hooks(self) -> None:
        """Keep components prepared from now on."""
        self._one_at_a_time = False

    def maybe_free_model_hooks(self) -> None:
        """Release what is prepared, if components are kept one at a time."""
        if self._one_at_a_time:
            self.close()

    def enable_layerwise_casting(
        self, storage_dtype: Any = None, compute_dtype: Any = None
    ) -> None:
        """Store the denoiser's weights in a smaller type than is computed in.

        Args:
            storage_dtype: A torch dtype of a scheme that the backend has, or the scheme's name.
            compute_dtype: The precision to compute in; by default as it is.

        Raises:
            InputError: the dtype is no scheme.
        """
        if compute_dtype is not None:
            self.to(compute_dtype)
        scheme = str(storage_dtype).removeprefix("torch.")
        known = host().backend(self.placement.default.backend).storages
        if scheme not in known:
            raise InputError(
                f"Layerwise casting to {storage_dtype!r} was asked for; {self.placement.default} "
                f"stores {', '.join(known) or 'nothing but the precision that it computes in'}."
            )
        denoiser = self.spec.one(Role.DENOISER).name
        chosen = find_transforms([f"storage:scheme={scheme},component={denoiser}"])
        self.close()
        self._transforms, self._plan = (*self._transforms, *chosen), None

    def reset_device_map(self) -> None:
        """Change nothing: a pipeline has a placement. See ``to``."""

    def to(self, *where: Any, **named: Any) -> Any:
        """Run elsewhere; ``DiffusionPipeline`` says how."""
        raise NotImplementedError
