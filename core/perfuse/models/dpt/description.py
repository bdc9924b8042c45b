"""The config and the description of DPT for depth, without torch."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

from perfuse.contract.spec import ComponentSpec, Dim, Role, Signature
from perfuse.models.config import ModelConfig
from perfuse.models.shapes import floating

__all__ = ["BitConfig", "DptConfig", "describe"]


@dataclass(frozen=True, kw_only=True)
class BitConfig(ModelConfig):
    """The fields of Transformers' ``BitConfig`` that say how a hybrid DPT's convolutions are.

    They are ResNet bottlenecks with standardised weights (Kolesnikov et al. 2020, arXiv:1912.11370).
    """

    class_name: ClassVar[str] = "BitBackbone"

    num_channels: int = 3
    embedding_size: int = 64
    hidden_sizes: tuple[int, ...] = (256, 512, 1024, 2048)
    depths: tuple[int, ...] = (3, 4, 9)
    layer_type: str = "bottleneck"
    hidden_act: str = "relu"
    global_padding: str | None = "same"
    num_groups: int = 32
    embedding_dynamic_padding: bool = True
    output_stride: int = 32
    width_factor: int = 1
    out_features: tuple[str, ...] = ("stage1", "stage2", "stage3")

    def __post_init__(self) -> None:
        self.check_choice("layer_type", ("bottleneck",))
        self.check_choice("hidden_act", ("relu",))
        self.check_choice("global_padding", ("same", "SAME"))
        self.check_choice("embedding_dynamic_padding", (True,))
        self.check_choice("width_factor", (1,))
        self.check_choice("out_features", (("stage1", "stage2", "stage3"),))
        if len(self.depths) != 3 or len(self.hidden_sizes) < 3:
            raise self.error(f"depths is {self.depths}", "three stages in a hybrid DPT")
        if any(width % 8 for width in self.hidden_sizes):
            raise self.error(f"hidden_sizes is {self.hidden_sizes}", "multiples of 8")
        if self.output_stride < 16:
            raise self.error(f"output_stride is {self.output_stride}", "16 or more")

    @classmethod
    def from_dict(cls, config: Mapping[str, Any]) -> Self:
        known = {one.name for one in dataclasses.fields(cls)}
        return super().from_dict({name: v for name, v in config.items() if name in known})


@dataclass(frozen=True, kw_only=True)
class DptConfig(ModelConfig):
    """The fields of Transformers' ``DPTConfig`` that determine what is computed for depth.

    Transformers leaves values at their default out of the file.
    """

    class_name: ClassVar[str] = "DPTForDepthEstimation"
    model_type: ClassVar[str] = "dpt"

    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    hidden_act: str = "gelu"
    layer_norm_eps: float = 1e-12
    image_size: int = 384
    patch_size: int = 16
    num_channels: int = 3
    is_hybrid: bool = False
    qkv_bias: bool = True
    backbone_out_indices: tuple[int, ...] = (2, 5, 8, 11)
    readout_type: str = "project"
    reassemble_factors: tuple[float, ...] = (4, 2, 1, 0.5)
    neck_hidden_sizes: tuple[int, ...] = (96, 192, 384, 768)
    fusion_hidden_size: int = 256
    #: The fused map that depth is made of, counted from the end if below zero.
    head_in_index: Any = -1
    use_batch_norm_in_fusion_residual: bool | None = False
    use_bias_in_fusion_residual: bool | None = None
    add_projection: bool = False
    backbone_featmap_shape: tuple[int, ...] | None = (1, 1024, 24, 24)
    neck_ignore_stages: tuple[int, ...] | None = (0, 1)
    #: The fields of ``BitConfig`` for a hybrid.
    backbone_config: Any = None
    #: The name of another backbone, in files of other models.
    backbone: Any = None

    def __post_init__(self) -> None:
        self.check_choice("hidden_act", ("gelu",))
        self.check_choice("backbone", (None,))
        readouts = ("project",) if self.is_hybrid else ("ignore", "add", "project")
        self.check_choice("readout_type", readouts)
        if not self.is_hybrid and self.backbone_config is not None:
            kind = (self.backbone_config or {}).get("model_type")
            raise self.error(
                f"backbone_config is that of another model, {kind!r}",
                "a plain vision transformer, or the hybrid with is_hybrid",
            )
        if self.num_attention_heads < 1 or self.hidden_size % self.num_attention_heads:
            raise self.error(
                f"num_attention_heads is {self.num_attention_heads}",
                f"a number that divides hidden_size, {self.hidden_size}",
            )
        if not 0 < self.patch_size <= self.image_size or self.image_size % self.patch_size:
            raise self.error(
                f"patch_size is {self.patch_size}",
                f"a number that divides image_size, {self.image_size}",
            )
        maps = len(self.neck_hidden_sizes)
        for name in ("backbone_out_indices", "reassemble_factors"):
            if len(getattr(self, name)) != maps or maps < 3:
                raise self.error(
                    f"{name} is {getattr(self, name)}", f"as many as neck_hidden_sizes, {maps}"
                )
        if self.head_in_index not in range(-maps, maps):
            raise self.error(
                f"head_in_index is {self.head_in_index!r}",
                f"a whole number from {-maps} to {maps - 1}",
            )
        if max(self.backbone_out_indices) >= self.num_hidden_layers:
            raise self.error(
                f"backbone_out_indices is {self.backbone_out_indices}",
                f"layers below {self.num_hidden_layers}",
            )
        if self.add_projection and self.fusion_hidden_size != 256:
            raise self.error(
                f"fusion_hidden_size is {self.fusion_hidden_size}", "256 with add_projection"
            )
        if self.is_hybrid:
            self._check_hybrid()

    def _check_hybrid(self) -> None:
        backbone = self.bit
        self.check_choice("neck_ignore_stages", ((0, 1),))
        if tuple(self.neck_hidden_sizes[:2]) != tuple(backbone.hidden_sizes[:2]):
            raise self.error(
                f"neck_hidden_sizes begins with {self.neck_hidden_sizes[:2]}",
                f"the widths of the backbone's first stages, {backbone.hidden_sizes[:2]}",
            )
        if self.patch_size != 16:
            raise self.error(f"patch_size is {self.patch_size}", "16 with is_hybrid")
        if self.backbone_featmap_shape is None or (
            self.backbone_featmap_shape[1] != backbone.hidden_sizes[2]
        ):
            raise self.error(
                f"backbone_featmap_shape is {self.backbone_featmap_shape}",
                f"the width of the backbone's last stage there, {backbone.hidden_sizes[2]}",
            )

    @property
    def bit(self) -> BitConfig:
        """The convolutions of a hybrid."""
        return BitConfig.from_dict(self.backbone_config or {})

    @property
    def grid(self) -> int:
        """Patches along an edge of a picture."""
        return self.image_size // self.patch_size

    @property
    def depth_size(self) -> int:
        """Height and width of the depth, in pixels."""
        factor = self.reassemble_factors[-1]
        smallest = (
            int(self.grid * factor) if factor >= 1 else (self.grid - 1) // int(1 / factor) + 1
        )
        fused = range(len(self.neck_hidden_sizes))[self.head_in_index] + 1
        size: int = smallest * 2 ** (fused + 1)
        return size

    @classmethod
    def from_dict(cls, config: Mapping[str, Any]) -> Self:
        """Read a parsed ``config.json``, which also holds settings for training and segmentation."""
        known = {one.name for one in dataclasses.fields(cls)}
        return super().from_dict({name: v for name, v in config.items() if name in known})

    def to_dict(self) -> dict[str, Any]:
        """The configuration as Transformers writes it."""
        fields = {
            one.name: getattr(self, one.name)
            for one in dataclasses.fields(self)
            if one.name != "backbone"
        }
        if self.is_hybrid:
            fields["backbone_config"] = {"model_type": "bit", **dict(self.backbone_config or {})}
        return {"architectures": [self.class_name], "model_type": self.model_type, **fields}


def describe(name: str, folder: str, config: Mapping[str, Any]) -> tuple[ComponentSpec, ...]:
    """DPT: a picture of one size in, its depth out, larger where nearer."""
    dpt = DptConfig.from_dict(config)
    size, out = dpt.image_size, dpt.depth_size
    return (
        ComponentSpec(
            name=name,
            role=Role.DEPTH_ESTIMATOR,
            class_name=dpt.class_name,
            folder=folder,
            config=config,
            signature=Signature(
                inputs=(floating("pixel_values", "batch", dpt.num_channels, size, size),),
                outputs=(floating("predicted_depth", "batch", out, out),),
            ),
            dims={"batch": Dim(example=2)},
        ),
    )
