"""Loading LoRAs into a pipeline: Diffusers' methods, and what they do to a plan."""

import dataclasses
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

from perfuse.contract.backend import Program
from perfuse.contract.frozen import FrozenDict
from perfuse.contract.spec import ComponentSpec, PipelineSpec, Role
from perfuse.contract.transform import Plan
from perfuse.errors import InputError
from perfuse.models.changing import with_changes
from perfuse.models.registry import aliases, read_by
from perfuse.run.arguments import check_safetensors
from perfuse.run.lora_state import Loras, finite
from perfuse.sources.adapters import Home, Place, Strength, read_adapter

__all__ = ["LoraMethods", "adaptable", "with_loras"]

_ROLES = (Role.DENOISER, Role.TEXT_ENCODER)
_ATTENTION = re.compile(r"((?:down|up)_blocks\.\d+|mid_block)\.attentions\.\d+(?=\.)")
#: Arguments of Diffusers that change nothing here.
_WITHOUT_EFFECT = ("low_cpu_mem_usage", "proxies", "unet_config", "return_lora_metadata")

Weight = float | Mapping[str, Any] | None


def adaptable(spec: PipelineSpec) -> tuple[ComponentSpec, ...]:
    """The components whose weights adapters change: the denoiser, then the text encoders."""
    return tuple(one for role in _ROLES for one in spec.having(role) if one.entry_of is None)


def with_loras(plan: Plan, loras: Loras, factor: float) -> Plan:
    """The plan with adapters in the weights of its components, and of their other entries.

    Args:
        plan: The plan.
        loras: The adapters.
        factor: How much those that are not fused count.
    """
    parts = {one.name: one.part for one in adaptable(plan.spec)}
    for name, component in plan.components.items():
        owner = component.spec.entry_of if component.spec.entry_of is not None else name
        changes = loras.changes(parts[owner], factor) if owner in parts else None
        if changes is not None:
            plan = plan.with_component(with_changes(component, changes))
    return plan


class LoraMethods:
    """The methods of a pipeline that load adapters and say how much each counts."""

    _loras: Loras = Loras()

    @property
    def lora_scale(self) -> float:
        """How much the adapters that are not fused counted in the last call, beside their weights."""
        pipe: Any = self
        return float(pipe.lora_factor)

    def load_lora_weights(
        self,
        pretrained_model_name_or_path_or_dict: "str | os.PathLike[str] | Mapping[str, Any]",
        adapter_name: str | None = None,
        hotswap: bool = False,
        *,
        weight_name: str | None = None,
        subfolder: str | None = None,
        revision: str | None = None,
        local_files_only: bool | None = None,
        use_safetensors: bool | None = None,
        **settings: Any,
    ) -> None:
        """Load a LoRA, LoHa, LoKr or DoRA; it alone counts then in the parts that it changes.

        Args:
            pretrained_model_name_or_path_or_dict: A safetensors file, its folder, a Hub id, or the
                tensors by name; as Diffusers and PEFT, kohya, LyCORIS or ComfyUI write it.
            adapter_name: What to call it; ``default_0``, ``default_1``, … by default.
            hotswap: Whether to put it in the place of the one of this name.
            weight_name: The file in the folder or the repository.
            subfolder: The folder in it.
            revision: Branch, tag or commit of a Hub repository.
            local_files_only: ``True`` reads only the Hub's cache.
            use_safetensors: ``True``: pickles are not read.
            **settings: ``cache_dir``, ``token``, ``force_download``; others of Diffusers' have no
                effect.

        Raises:
            CheckpointError: the Hub does not give the file.
            InputError: the name is taken, or an argument is unknown.
            WeightsError: the file is damaged or a pickle, or was made for another model.
        """
        check_safetensors(use_safetensors)
        loras = self._loras
        name = adapter_name if adapter_name is not None else _free(loras.names)
        if (name in loras.names) != hotswap:
            raise InputError(
                f"An adapter was to be loaded as {name!r}; "
                + (
                    f"there is none of this name to replace: {', '.join(loras.names) or 'none'}. "
                    "Leave hotswap out."
                    if hotswap
                    else "one of this name is loaded. Give another: adapter_name=."
                )
            )
        names = ("cache_dir", "token", "force_download")
        hub = {key: settings.pop(key) for key in names if settings.get(key) is not None}
        if unknown := [key for key in settings if key not in (*names, *_WITHOUT_EFFECT)]:
            raise InputError(f"load_lora_weights was given {', '.join(unknown)}, which it lacks.")
        adapter = read_adapter(
            pretrained_model_name_or_path_or_dict,
            self._homes(),
            name=name,
            of=self._pipe.spec.class_name,
            only=self._only,
            place=Place(
                weight_name=weight_name,
                subfolder=subfolder,
                revision=revision,
                offline=local_files_only,
                hub=hub,
            ),
        )
        if hotswap:
            loras = loras.without([name])
        self._use(loras.with_loaded(adapter))

    def set_adapters(
        self,
        adapter_names: str | Sequence[str],
        adapter_weights: Weight | Sequence[Weight] = None,
    ) -> None:
        """Have these adapters count, and no others.

        Args:
            adapter_names: The adapters.
            adapter_weights: How much each counts, 1 by default: a number for all, or one for each;
                instead of a number also ``{"unet": 0.5, "text_encoder": 0}``, and for the denoiser
                ``{"down": 0.5, "mid": 1, "up": {"block_0": 0, "block_1": [0, 1, 0.5]}}``, where what
                is not named counts 1.

        Raises:
            InputError: an adapter is not loaded, a weight is no finite number, or names a part or a
                block that is not there.
        """
        names = (adapter_names,) if isinstance(adapter_names, str) else tuple(adapter_names)
        self._loras.check(names)
        listed = isinstance(adapter_weights, list | tuple)
        weights: Any = adapter_weights if listed else [adapter_weights] * len(names)
        if len(weights) != len(names):
            raise InputError(
                f"{len(names)} adapters and {len(weights)} weights were given. Give one for each."
            )
        spec: PipelineSpec = self._pipe.spec
        parts = [one.part for one in adaptable(spec)]
        by_part = [_by_part(one, parts) for one in weights]
        strengths = {
            part: [self._strength(one[part], part) for one in by_part] for part in self._loras.uses
        }
        self._use(self._loras.with_active(names, strengths))

    def unload_lora_weights(self, reset_to_overwritten_params: bool = False) -> None:
        """Take every adapter out; what is fused stays."""
        self._use(self._loras.without(self._loras.names))

    def delete_adapters(self, adapter_names: str | Sequence[str]) -> None:
        """Take adapters out; what of them is fused stays.

        Raises:
            InputError: one is not loaded.
        """
        names = [adapter_names] if isinstance(adapter_names, str) else list(adapter_names)
        self._loras.check(names)
        self._use(self._loras.without(names))

    def disable_lora(self) -> None:
        """Draw without adapters, also those that were fused, until ``enable_lora``."""
        loras = self._loras.without_fused(tuple(self._loras.fused))
        self._use(dataclasses.replace(loras, enabled=False))

    def enable_lora(self) -> None:
        """Draw with the active adapters again."""
        self._use(dataclasses.replace(self._loras, enabled=True, disabled=frozenset()))

    def fuse_lora(
        self,
        components: Sequence[str] | None = None,
        lora_scale: float = 1.0,
        safe_fusing: bool = False,
        adapter_names: Sequence[str] | None = None,
        **_: Any,
    ) -> None:
        """Make adapters part of the weights: they stay when they are unloaded, and are saved.

        Args:
            components: The parts to fuse into; all that adapters change by default.
            lora_scale: How much they count, beside the weight of each. As in Diffusers, those that
                are active keep it after ``unfuse_lora``.
            safe_fusing: Whether to look for numbers that are not finite, which is done always.
            adapter_names: The adapters to fuse; the active ones by default.

        Raises:
            InputError: a part or an adapter is not there, or the scale is no finite number.
        """
        names = None if adapter_names is None else tuple(adapter_names)
        self._loras.check(names if names is not None else ())
        factor = finite(lora_scale, "lora_scale")
        self._use(self._loras.with_fused(self._fusible(components), factor, names))

    def unfuse_lora(self, components: Sequence[str] | None = None, **_: Any) -> None:
        """Make adapters that are loaded no longer part of the weights; they count as they did."""
        self._use(self._loras.without_fused(self._fusible(components)))

    def get_active_adapters(self) -> list[str]:
        """The adapters that count, in their order."""
        return list(self._loras.active_names)

    def get_list_adapters(self) -> dict[str, list[str]]:
        """By part, the adapters that are loaded."""
        return {part: list(loaded) for part, loaded in self._loras.uses.items()}

    @property
    def num_fused_loras(self) -> int:
        """How many adapters are fused."""
        return len(self._loras.fused_names)

    @property
    def fused_loras(self) -> set[str]:
        """The names of the adapters that are fused."""
        return set(self._loras.fused_names)

    def enable_lora_hotswap(self, **_: Any) -> None:
        """Change nothing: adapters of any rank replace one another."""

    def set_lora_device(self, adapter_names: Sequence[str], device: Any) -> None:
        """Change nothing: adapters that do not count take no memory of a device."""
        self._loras.check(list(adapter_names))

    # What the methods share

    #: What names of tensors to load begin with, of one part's; ``None`` for all.
    _only: str | None = None

    @property
    def _pipe(self) -> Any:
        return self

    def _use(self, loras: Loras) -> None:
        """Draw with these adapters from now on; programs take them when they run next."""
        self._loras = loras
        self._pipe._adapters_changed()

    def _homes(self) -> dict[str, Home]:
        """The parts that adapters may change, with their weights."""
        pipe, found = self._pipe, {}
        for spec in adaptable(pipe.spec):
            replaced = pipe._models.get(spec.part)
            if isinstance(replaced, Program):
                raise InputError(
                    f"A LoRA was to be loaded; {spec.part} was replaced by a program, whose weights "
                    "are not to be had. Load it into the checkpoint."
                )
            shapes = pipe.weight_shapes(pipe.component(spec.name))
            layers = [name.removesuffix(".weight") for name in shapes if name.endswith(".weight")]
            found[spec.part] = Home(
                part=spec.part,
                denoiser=spec.role == Role.DENOISER,
                shapes=shapes,
                aliases=aliases(spec, layers),
                unread=partial(self._unread, spec.folder),
            )
        return found

    def _unread(self, folder: str, layer: str) -> bool:
        """Whether a layer of a checkpoint's folder is one that none of its components reads."""
        there = [one for one in self._pipe.spec.components.values() if one.folder == folder]
        return not any(read_by(one, [f"{layer}.weight"]) for one in there)

    def _fusible(self, components: Sequence[str] | None) -> tuple[str, ...]:
        parts = [one.part for one in adaptable(self._pipe.spec)]
        chosen = parts if components is None else list(components)
        if not chosen or (unknown := [name for name in chosen if name not in parts]):
            named = ", ".join(unknown) if chosen else "none"
            raise InputError(f"components={named} was given; adapters change {', '.join(parts)}.")
        return tuple(chosen)

    def _strength(self, weight: Any, part: str) -> Strength:
        """How much an adapter counts in a part."""
        if not isinstance(weight, Mapping):
            return finite(weight, f"The weight for {part}")
        (component,) = (one for one in adaptable(self._pipe.spec) if one.part == part)
        shapes = self._pipe.weight_shapes(self._pipe.component(component.name))
        places = dict.fromkeys(match[0] for name in shapes if (match := _ATTENTION.match(name)))
        return FrozenDict(_by_place(weight, tuple(places)))


def _free(names: Sequence[str]) -> str:
    number = len(names)
    while f"default_{number}" in names:
        number += 1
    return f"default_{number}"


def _by_part(weight: Any, parts: Sequence[str]) -> dict[str, Any]:
    """One adapter's weight for each part, 1 where none is given."""
    if not isinstance(weight, Mapping):
        return dict.fromkeys(parts, 1.0 if weight is None else weight)
    if unknown := [name for name in weight if name not in parts]:
        raise InputError(
            f"A weight names {', '.join(map(str, unknown))}; adapters change {', '.join(parts)}. "
            'Weights of blocks belong to a part: {"unet": {"down": 0.5}}.'
        )
    return {part: 1.0 if weight.get(part) is None else weight[part] for part in parts}


def _by_place(weight: Mapping[str, Any], places: Sequence[str]) -> Iterator[tuple[str, float]]:
    """A number for each attention, of a weight that names parts, blocks and attentions."""
    blocks: dict[tuple[str, str], list[str]] = {}
    for place in places:
        way, number, *_ = place.split(".")
        if way == "mid_block":
            blocks.setdefault(("mid", ""), []).append(place)
        else:
            blocks.setdefault((way.removesuffix("_blocks"), f"block_{number}"), []).append(place)
    for way, inner in weight.items():
        known = [block for one, block in blocks if one == way]
        named = list(inner) if isinstance(inner, Mapping) and way != "mid" else []
        if not known or any(block not in known for block in named):
            there = ", ".join(f"{one} {block}".strip() for one, block in blocks)
            raise InputError(f"A weight names {way}: {inner!r}; the denoiser has {there}.")
    for (way, block), own in blocks.items():
        value = weight.get(way, 1.0)
        if isinstance(value, Mapping):
            value = value.get(block, 1.0)
        each = list(value) if isinstance(value, list | tuple) else [value]
        if len(each) not in (1, len(own)):
            raise InputError(
                f"The weight of {way} {block} has {len(each)} numbers; it has {len(own)} attentions."
            )
        for place, number in zip(own, each * (len(own) // len(each)), strict=True):
            yield place, finite(number, f"The weight of {place}")
