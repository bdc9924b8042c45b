"""The text-conditioned UNet of Stable Diffusion (arXiv:2112.10752) and SD XL (arXiv:2307.01952)."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, TypeAlias

import torch
from torch import Tensor, nn

from perfuse.contract.spec import ComponentSpec
from perfuse.errors import InputError
from perfuse.models.attention import Transformer2DModel
from perfuse.models.building import load_native, native
from perfuse.models.embeddings import (
    FourierFeatures,
    ImageProjection,
    ImageTimeEmbedding,
    TextImageProjection,
    TextImageTimeEmbedding,
    TextTimeEmbedding,
    TimestepEmbedding,
    Timesteps,
    activation,
)
from perfuse.models.model import Model, as_batch, check_attention
from perfuse.models.unet_2d.network import UNetOutput
from perfuse.models.unet_2d_condition.description import UNet2DConditionConfig
from perfuse.models.unet_2d_condition.k_blocks import KDownBlock, KSettings, KUpBlock
from perfuse.models.unet_blocks import (
    DownBlock,
    MidBlock,
    Resnets,
    UpBlock,
    conv_down,
    conv_up,
    resized,
    resnet_down,
    resnet_up,
)
from perfuse.sources.weights import Weights

#: The time embedding, the states that cross-attention looks at, and its bias.
Conditions: TypeAlias = tuple[Tensor, Tensor | None, Tensor | None]


class Conditioned(Model):
    """What a UNet has in common with a network that is made of its first half."""

    config: UNet2DConditionConfig
    time_embed_act: nn.Module | None

    def _resnets(self, time_channels: int) -> Resnets:
        config = self.config
        return Resnets(
            time_channels=time_channels * (2 if config.class_embeddings_concat else 1),
            groups=config.norm_num_groups if config.norm_num_groups is not None else 32,
            eps=config.norm_eps,
            act_fn=config.act_fn,
            dropout=config.dropout,
            scale_shift=config.resnet_time_scale_shift == "scale_shift",
        )

    def _build_time(self) -> tuple[int, int]:
        config, width = self.config, self.config.block_out_channels[0]
        self.time_proj: nn.Module
        if config.time_embedding_type == "fourier":
            channels = inputs = config.time_channels
            self.time_proj = FourierFeatures(
                channels // 2, scale=1.0, log=False, flip_sin_to_cos=config.flip_sin_to_cos
            )
        else:
            channels, inputs = config.time_channels, width
            self.time_proj = Timesteps(width, config.flip_sin_to_cos, config.freq_shift)
        self.time_embedding = TimestepEmbedding(
            inputs,
            channels,
            act_fn=config.act_fn,
            post_act_fn=config.timestep_post_act,
            cond_proj_dim=config.time_cond_proj_dim,
        )
        return channels, inputs

    def _build_text_projection(self) -> None:
        config = self.config
        kind, inputs = config.encoder_hid_dim_type, config.encoder_hid_dim or 0
        outputs = config.per_block("cross_attention_dim")[0]
        self.encoder_hid_proj: nn.Module | None = None
        if kind == "text_proj":
            self.encoder_hid_proj = nn.Linear(inputs, outputs)
        elif kind == "text_image_proj":
            self.encoder_hid_proj = TextImageProjection(inputs, outputs, outputs)
        elif kind == "image_proj":
            self.encoder_hid_proj = ImageProjection(inputs, outputs)

    def _build_class_embedding(self, channels: int, time_inputs: int) -> None:
        config = self.config
        kind, inputs = config.class_embed_type, config.projection_class_embeddings_input_dim or 0
        self.class_embedding: nn.Module | None = None
        if kind is None and config.num_class_embeds is not None:
            self.class_embedding = nn.Embedding(config.num_class_embeds, channels)
        elif kind == "timestep":
            self.class_embedding = TimestepEmbedding(time_inputs, channels, act_fn=config.act_fn)
        elif kind == "identity":
            self.class_embedding = nn.Identity()
        elif kind == "projection":
            self.class_embedding = TimestepEmbedding(inputs, channels)
        elif kind == "simple_projection":
            self.class_embedding = nn.Linear(inputs, channels)

    def _build_added_embedding(self, channels: int) -> None:
        config = self.config
        kind = config.addition_embed_type
        cross = config.per_block("cross_attention_dim")[0]
        self.add_embedding: nn.Module | None = None
        if kind == "text_time":
            self.add_time_proj = Timesteps(
                config.addition_time_embed_dim or 0, config.flip_sin_to_cos, config.freq_shift
            )
            self.add_embedding = TimestepEmbedding(
                config.projection_class_embeddings_input_dim or 0, channels
            )
        elif kind == "text":
            self.add_embedding = TextTimeEmbedding(
                config.encoder_hid_dim or cross, channels, config.addition_embed_type_num_heads
            )
        elif kind == "text_image":
            self.add_embedding = TextImageTimeEmbedding(cross, cross, channels)
        elif kind == "image":
            self.add_embedding = ImageTimeEmbedding(config.encoder_hid_dim or cross, channels)

    def _transformers(
        self, block: int, width: int, layers: Any, resnets: Resnets, *, mid: bool = False
    ) -> Callable[[int], nn.Module]:
        """Makes the ``i``-th transformer of a block; ``block`` counts from the top."""
        config = self.config

        def make(i: int) -> nn.Module:
            return Transformer2DModel(
                width,
                heads=config.per_block("attention_head_dim")[block],
                layers=layers[i] if isinstance(layers, tuple) else layers,
                context_channels=config.per_block("cross_attention_dim")[block],
                groups=resnets.groups,
                linear_projection=config.use_linear_projection,
                only_cross_attention=not mid and config.per_block("only_cross_attention")[block],
                upcast=config.upcast_attention,
            )

        return make

    def _down_block(self, i: int, resnets: Resnets) -> nn.Module:
        config = self.config
        if config.has_k_blocks:
            return self._k_down_block(i)
        kind, width = config.down_block_types[i], config.block_out_channels[i]
        layers = config.per_block("transformer_layers_per_block")[i]
        last = i == len(config.block_out_channels) - 1
        resnet: Callable[..., Any] = resnets.make
        down = conv_down(width, config.downsample_padding)
        if kind == "ResnetDownsampleBlock2D":
            resnet = self._scaled(resnets)
            down = resnet_down(resnet, width)
        return DownBlock(
            config.block_out_channels[max(i - 1, 0)],
            width,
            layers=config.per_block("layers_per_block")[i],
            resnet=resnet,
            attention=self._transformers(i, width, layers, resnets)
            if kind == "CrossAttnDownBlock2D"
            else None,
            downsample=None if last else down,
        )

    def _mid_block(self, resnets: Resnets) -> MidBlock:
        config, width = self.config, self.config.block_out_channels[-1]
        scale = config.mid_block_scale_factor
        layers = config.per_block("transformer_layers_per_block")[-1]
        attends = config.mid_block_type == "UNetMidBlock2DCrossAttn"
        return MidBlock(
            width,
            resnet=lambda a, b: resnets.make(a, b, output_scale_factor=scale),
            attention=self._transformers(-1, width, layers, resnets, mid=True) if attends else None,
            layers=1 if attends else 0,
        )

    def _up_block(self, i: int, resnets: Resnets) -> nn.Module:
        config = self.config
        if config.has_k_blocks:
            return self._k_up_block(i)
        widths = config.block_out_channels[::-1]
        block = len(widths) - 1 - i
        kind, width = config.up_block_types[i], widths[i]
        reverse = config.reverse_transformer_layers_per_block
        layers = (
            reverse[i]
            if reverse is not None
            else config.per_block("transformer_layers_per_block")[block]
        )
        resnet: Callable[..., Any] = resnets.make
        up = conv_up(width)
        if kind == "ResnetUpsampleBlock2D":
            resnet = self._scaled(resnets)
            up = resnet_up(resnet, width)
        return UpBlock(
            widths[min(i + 1, len(widths) - 1)],
            width,
            widths[max(i - 1, 0)],
            layers=config.per_block("layers_per_block")[block] + 1,
            resnet=resnet,
            attention=self._transformers(block, width, layers, resnets)
            if kind == "CrossAttnUpBlock2D"
            else None,
            upsample=up if i < len(widths) - 1 else None,
        )

    def _k_down_block(self, i: int) -> KDownBlock:
        config = self.config
        widths, last = config.block_out_channels, len(config.block_out_channels) - 1
        kind = config.down_block_types[i]
        return KDownBlock(
            widths[max(i - 1, 0)],
            widths[i],
            layers=config.per_block("layers_per_block")[i],
            settings=self._k_settings(i, i, kind == "KCrossAttnDownBlock2D", i == last),
            downsample=i < last,
        )

    def _k_up_block(self, i: int) -> KUpBlock:
        config = self.config
        widths = config.block_out_channels[::-1]
        block = len(widths) - 1 - i
        kind = config.up_block_types[i]
        return KUpBlock(
            widths[min(i + 1, len(widths) - 1)],
            widths[i],
            layers=config.per_block("layers_per_block")[block],
            # Diffusers counts the heads' channels from the bottom here.
            settings=self._k_settings(block, i, kind == "KCrossAttnUpBlock2D", i == 0),
            joins=i > 0,
            upsample=i < len(widths) - 1,
        )

    def _k_settings(self, block: int, heads: int, attends: bool, lowest: bool) -> KSettings:
        config = self.config
        return KSettings(
            time_channels=config.time_channels,
            eps=config.norm_eps,
            act_fn=config.act_fn,
            dropout=config.dropout,
            head_dim=config.per_block("attention_head_dim")[heads] if attends else None,
            context_channels=config.per_block("cross_attention_dim")[block],
            self_attention=lowest,
        )

    def _scaled(self, resnets: Resnets) -> Callable[..., Any]:
        config = self.config

        def make(in_channels: int, out_channels: int, **options: Any) -> nn.Module:
            return resnets.make(
                in_channels,
                out_channels,
                skip_time_act=config.resnet_skip_time_act,
                output_scale_factor=config.resnet_out_scale_factor,
                **options,
            )

        return make

    def _embed(
        self,
        sample: Tensor,
        timestep: Tensor | float,
        text: Tensor | None,
        class_labels: Tensor | None,
        timestep_cond: Tensor | None,
        added: Mapping[str, Tensor],
    ) -> Tensor:
        """The time embedding with everything that is added to it: [B, T]."""
        config = self.config
        sinusoids = self.time_proj(as_batch(timestep, sample)).to(sample.dtype)
        time: Tensor = self.time_embedding(sinusoids, timestep_cond)
        if self.class_embedding is not None:
            if class_labels is None:
                raise ValueError("this model is conditioned on a class: pass class_labels")
            if config.class_embed_type == "timestep":
                class_labels = self.time_proj(class_labels).to(sample.dtype)
            embedded = self.class_embedding(class_labels).to(sample.dtype)
            time = (
                torch.cat([time, embedded], dim=-1)
                if config.class_embeddings_concat
                else time + embedded
            )
        kind = config.addition_embed_type
        if self.add_embedding is not None:
            if kind == "text":
                time = time + self.add_embedding(text)
            elif kind == "text_image":
                text = added.get("text_embeds", text)
                time = time + self.add_embedding(text, _need(added, "image_embeds", kind))
            elif kind == "image":
                time = time + self.add_embedding(_need(added, "image_embeds", kind))
            else:
                pooled, ids = _need(added, "text_embeds", kind), _need(added, "time_ids", kind)
                sizes = self.add_time_proj(ids.flatten()).unflatten(0, ids.shape).flatten(1)
                extra = torch.cat([pooled, sizes], dim=-1).to(time.dtype)
                time = time + self.add_embedding(extra)
        if self.time_embed_act is not None:
            time = self.time_embed_act(time)
        return time

    def context(self, text: Tensor, added: Mapping[str, Tensor]) -> Tensor:
        """The states that cross-attention looks at: [B, S, D]."""
        kind, project = self.config.encoder_hid_dim_type, self.encoder_hid_proj
        if project is None:
            return text
        if kind == "text_proj":
            projected: Tensor = project(text)
        elif kind == "text_image_proj":
            projected = project(text, _need(added, "image_embeds", kind))
        else:
            projected = project(_need(added, "image_embeds", kind))
        return projected


class UNet2DConditionModel(Conditioned):
    """Predicts noise (or velocity) from a noisy latent, a timestep and text states."""

    config_class: ClassVar[type[UNet2DConditionConfig]] = UNet2DConditionConfig

    def build(self) -> None:
        config = self.config
        widths = config.block_out_channels
        kernel = config.conv_in_kernel
        self.conv_in = nn.Conv2d(config.in_channels, widths[0], kernel, padding=(kernel - 1) // 2)
        time_channels, time_inputs = self._build_time()
        self._build_text_projection()
        self._build_class_embedding(time_channels, time_inputs)
        self._build_added_embedding(time_channels)
        self.time_embed_act = (
            activation(config.time_embedding_act_fn)
            if config.time_embedding_act_fn is not None
            else None
        )
        resnets = self._resnets(time_channels)
        self.down_blocks = nn.ModuleList(self._down_block(i, resnets) for i in range(len(widths)))
        self.mid_block = self._mid_block(resnets) if config.mid_block_type is not None else None
        self.up_blocks = nn.ModuleList(self._up_block(i, resnets) for i in range(len(widths)))
        self.conv_norm_out = (
            nn.GroupNorm(config.norm_num_groups, widths[0], eps=config.norm_eps)
            if config.norm_num_groups is not None
            else None
        )
        self.conv_act = activation(config.act_fn)
        kernel = config.conv_out_kernel
        self.conv_out = nn.Conv2d(widths[0], config.out_channels, kernel, padding=(kernel - 1) // 2)

    def forward(
        self,
        sample: Tensor,
        timestep: Tensor | float,
        encoder_hidden_states: Tensor,
        class_labels: Tensor | None = None,
        timestep_cond: Tensor | None = None,
        attention_mask: None = None,
        cross_attention_kwargs: Mapping[str, Any] | None = None,
        added_cond_kwargs: Mapping[str, Tensor] | None = None,
        down_block_additional_residuals: Sequence[Tensor] | None = None,
        mid_block_additional_residual: Tensor | None = None,
        down_intrablock_additional_residuals: Sequence[Tensor] | None = None,
        encoder_attention_mask: Tensor | None = None,
        return_dict: bool = True,
    ) -> UNetOutput | tuple[Tensor]:
        """Predict from ``sample`` [B, C, h, w], ``timestep`` and text states [B, S, D].

        Args:
            sample: The noisy latent.
            timestep: A number, or [B]; fractions are kept.
            encoder_hidden_states: Text states.
            class_labels: [B] or [B, P], for class-conditioned models.
            timestep_cond: [B, E], the guidance embedding of LCM.
            attention_mask: Not taken.
            cross_attention_kwargs: Not taken but empty, or with a ``scale``, which is that of adapters
                and of no effect on a model by itself.
            added_cond_kwargs: ``text_embeds`` [B, P] and ``time_ids`` [B, 6] for SD XL;
                ``image_embeds`` for Kandinsky.
            down_block_additional_residuals: A ControlNet's, one a skip connection.
            mid_block_additional_residual: A ControlNet's, for the middle.
            down_intrablock_additional_residuals: A T2I-Adapter's, one a block of the first half;
                one more is for the middle.
            encoder_attention_mask: [B, S], 1 for tokens to attend to, 0 for padding.
            return_dict: ``False`` for a one-element tuple.

        Raises:
            InputError: an argument is not taken.
        """
        check_attention(cross_attention_kwargs, attention_mask=attention_mask)
        sample, skips, conditions = self.trunk(
            sample,
            timestep,
            encoder_hidden_states,
            class_labels,
            timestep_cond,
            added_cond_kwargs,
            down_block_additional_residuals,
            mid_block_additional_residual,
            down_intrablock_additional_residuals,
            encoder_attention_mask,
        )
        sample = self.finish(self.up_blocks[-1](sample, skips, *conditions))
        return UNetOutput(sample) if return_dict else (sample,)

    def trunk(
        self,
        sample: Tensor,
        timestep: Tensor | float,
        encoder_hidden_states: Tensor,
        class_labels: Tensor | None = None,
        timestep_cond: Tensor | None = None,
        added_cond_kwargs: Mapping[str, Tensor] | None = None,
        down_block_additional_residuals: Sequence[Tensor] | None = None,
        mid_block_additional_residual: Tensor | None = None,
        down_intrablock_additional_residuals: Sequence[Tensor] | None = None,
        encoder_attention_mask: Tensor | None = None,
    ) -> tuple[Tensor, list[Tensor], Conditions]:
        """All but the last block: what it is given, the skip connections left, and the conditions.

        The arguments are those of ``forward``.
        """
        added = added_cond_kwargs if added_cond_kwargs is not None else {}
        bias = None
        if encoder_attention_mask is not None:
            # -10000 and not minus infinity, which becomes NaN in half precision.
            bias = ((1 - encoder_attention_mask.to(sample.dtype)) * -10000.0)[:, None, None]
        sample, time = self.begin(
            sample, timestep, encoder_hidden_states, class_labels, timestep_cond, added
        )
        context = self.context(encoder_hidden_states, added)

        features = list(down_intrablock_additional_residuals or ())
        skips = [sample]
        for block in self.down_blocks:
            feature = features.pop(0) if features else None
            sample, states = block(sample, time, context, bias, feature)
            skips.extend(states)
        if down_block_additional_residuals is not None:
            pairs = zip(skips, down_block_additional_residuals, strict=True)
            skips = [skip + resized(residual, skip) for skip, residual in pairs]
        if self.mid_block is not None:
            sample = self.mid_block(sample, time, context, bias)
        for residual in (*features, mid_block_additional_residual):
            if residual is not None:
                sample = sample + resized(residual, sample)
        for block in self.up_blocks[:-1]:
            sample = block(sample, skips, time, context, bias)
        return sample, skips, (time, context, bias)

    def begin(
        self,
        sample: Tensor,
        timestep: Tensor | float,
        text: Tensor | None,
        class_labels: Tensor | None,
        timestep_cond: Tensor | None,
        added: Mapping[str, Tensor],
    ) -> tuple[Tensor, Tensor]:
        """The sample after the first convolution, and the time embedding."""
        if self.config.center_input_sample:
            sample = 2 * sample - 1.0
        time = self._embed(sample, timestep, text, class_labels, timestep_cond, added)
        return self.conv_in(sample), time

    def finish(self, sample: Tensor) -> Tensor:
        """The prediction, from what the last block returns."""
        if self.conv_norm_out is not None:
            sample = self.conv_act(self.conv_norm_out(sample))
        output: Tensor = self.conv_out(sample)
        return output


def _need(added: Mapping[str, Tensor], name: str, kind: str | None) -> Tensor:
    if name not in added:
        raise ValueError(f"this model's {kind} conditioning needs {name!r} in added_cond_kwargs")
    return added[name]


class UNet2DCondition(nn.Module):
    """``sample, timestep, encoder_hidden_states, … -> (out_sample,)``, by the signature's names."""

    def __init__(self, model: nn.Module, names: tuple[str, ...]) -> None:
        super().__init__()
        self.model = model
        self.names = names

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        output: tuple[Tensor] = self.model(**self.arguments(inputs), return_dict=False)
        return output

    def arguments(self, inputs: tuple[Tensor, ...]) -> dict[str, Any]:
        """The model's arguments by name, of a signature's inputs in order."""
        named: dict[str, Any] = dict(zip(self.names, inputs, strict=True))
        named["added_cond_kwargs"] = {
            name: named.pop(name)
            for name in ("text_embeds", "time_ids", "image_embeds")
            if name in named
        }
        down = [named.pop(name) for name in self.names if name.startswith("down_residual")]
        features = [named.pop(name) for name in self.names if name.startswith("adapter_feature")]
        if "mid_residual" in named:
            named["mid_block_additional_residual"] = named.pop("mid_residual")
        return {
            **named,
            "down_block_additional_residuals": down or None,
            "down_intrablock_additional_residuals": features or None,
        }


def build(spec: ComponentSpec, weights: Weights, dtype: torch.dtype) -> nn.Module:
    """The flat module of a checkpoint's component."""
    return wrap(spec, load_native(UNet2DConditionModel, spec, weights, dtype))


def wrap(spec: ComponentSpec, model: nn.Module) -> nn.Module:
    """The flat module of a UNet of perfuse or Diffusers."""
    return UNet2DCondition(native(UNet2DConditionModel, spec, model), spec.signature.input_names)


def own_unet(module: nn.Module, asked: str) -> tuple[UNet2DConditionModel, tuple[str, ...]]:
    """perfuse's UNet in a flat module, and the names of the module's inputs.

    Args:
        module: What ``build`` or ``wrap`` returned.
        asked: What the UNet is wanted for, for the error: ``"to be cut"``.

    Raises:
        InputError: it is another library's that perfuse has no model like.
    """
    model: Any = getattr(module, "model", module)
    if not (isinstance(module, UNet2DCondition) and isinstance(model, UNet2DConditionModel)):
        raise InputError(
            f"The denoiser was {asked}; the one that was set is a {type(model).__module__} module "
            "that perfuse cannot rewrite. Use the checkpoint's."
        )
    return model, module.names
