"""The architectures of core and of plugins, by the class name in a checkpoint."""

import importlib
import math
import pkgutil
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from perfuse.contract.architecture import Architecture, Attentions, Called
from perfuse.contract.component import Component
from perfuse.contract.guider import Perturbation
from perfuse.contract.latents import LatentSpec, PixelLatents
from perfuse.contract.original import Original, Shapes, Stacked
from perfuse.contract.spec import ComponentSpec, Role
from perfuse.errors import CheckpointError, InputError
from perfuse.memory import check_memory
from perfuse.models.config import ModelConfig, check_types
from perfuse.plugins import host, resolve
from perfuse.sources.left_out import check_left_out

if TYPE_CHECKING:
    from perfuse.models.ip_adapter.prompting import Prompting

__all__ = [
    "aliases",
    "attentions",
    "called",
    "check_config",
    "corrected",
    "describe",
    "find",
    "first_blocks",
    "fitted",
    "gated",
    "held",
    "host_inputs",
    "image_prompts",
    "is_known",
    "latents_class",
    "latents_of",
    "model_class",
    "network",
    "original",
    "own",
    "perturbed",
    "read_by",
    "shallow",
    "with_hidden_states",
]


def own() -> Iterator[Architecture]:
    """Core's architectures: ``ARCHITECTURES`` of each subpackage that has it."""
    for module in pkgutil.iter_modules([str(Path(__file__).parent)]):
        if module.ispkg:
            yield from importlib.import_module(f"perfuse.models.{module.name}").ARCHITECTURES


def is_known(class_name: str) -> bool:
    """Whether core or a plugin has an architecture of this class name."""
    return class_name in host().architectures()


def network(class_name: str) -> Any:
    """The torch class of one of core's models; ``None`` if core has no class of this name."""
    for architecture in own():
        if architecture.class_name == class_name:
            module = importlib.import_module(architecture.build.partition(":")[0])
            return getattr(module, class_name, None)
    return None


def model_class(class_name: str) -> Any:
    """``network``, or transformers' class of this name where perfuse runs that."""
    found = network(class_name)
    theirs = [one.class_name for one in own() if one.library == "transformers"]
    if found is None and class_name in theirs:
        import transformers

        found = getattr(transformers, class_name, None)
    return found


def find(class_name: str, *, asked: str) -> Architecture:
    """The architecture of a class.

    Raises:
        CheckpointError: neither perfuse nor a plugin knows the class.
    """
    known = host().architectures()
    if class_name not in known:
        check_left_out(class_name, asked=asked)
        raise CheckpointError(
            f"{asked} is a {class_name}, which perfuse does not know; it knows "
            f"{', '.join(sorted(known))}. A plugin can add a class: hook perfuse_architectures."
        )
    return known[class_name]


def describe(
    class_name: str,
    name: str,
    folder: str,
    config: Mapping[str, Any],
    *,
    where: Path | None = None,
    pipeline: str | None = None,
) -> tuple[ComponentSpec, ...]:
    """The components that a checkpoint's folder holds.

    Args:
        class_name: The model's class.
        name: The component's name in ``model_index.json``.
        folder: The component's folder in the checkpoint.
        config: The folder's ``config.json``, parsed.
        where: The path of that file, for error messages.
        pipeline: The class of the pipeline, which may say what is made of its components.

    Raises:
        CheckpointError: the class is unknown, or it cannot take this config.
    """
    architecture = find(class_name, asked=name)
    if where is not None:
        check_config(class_name, config, where=where)
    manifest = host().pipelines().get(pipeline) if pipeline is not None else None
    how = manifest.describes.get(name) if manifest is not None else None
    right = corrected(config, name, pipeline)
    specs: tuple[ComponentSpec, ...] = resolve(how or architecture.describe)(name, folder, right)
    return specs


def corrected(config: Mapping[str, Any], name: str, pipeline: str | None) -> Mapping[str, Any]:
    """A model's config as Diffusers' pipeline corrects it, for an entry of a pipeline of this class."""
    manifest = host().pipelines().get(pipeline) if pipeline is not None else None
    settings = manifest.corrects_models.get(name, {}) if manifest is not None else {}
    return {**config, **settings}


def check_config(class_name: str, config: Mapping[str, Any], *, where: Path) -> None:
    """Check the types of a component's config, where its class is known and says which they are.

    Args:
        class_name: The model's class.
        config: Its ``config.json``, parsed.
        where: The path of the file that has it, for error messages.

    Raises:
        CheckpointError: a value is not of its field's type.
    """
    architecture = host().architectures().get(class_name)
    if architecture is not None and architecture.config:
        fields: Any = resolve(architecture.config)
        check_types(fields, config, where=where)


def original(name: str, shapes: Shapes) -> tuple[str, Original] | None:
    """The class whose tensors these are in a single-file checkpoint, and what they tell of it.

    Args:
        name: The component that they are of a pipeline: ``"vae"``.
        shapes: The tensors' names, without what stands before all of them, dtypes and shapes.

    Raises:
        CheckpointError: tensors of the class are missing.
    """
    for class_name, architecture in host().architectures().items():
        if not architecture.original:
            continue
        try:
            found: Original | None = resolve(architecture.original)(name, shapes)
        except KeyError as exc:
            raise CheckpointError(f"the {name}, a {class_name}, lacks {exc.args[0]}") from exc
        except (ArithmeticError, AttributeError, IndexError, TypeError, ValueError) as exc:
            raise CheckpointError(
                f"the {name}, a {class_name}, has tensors of shapes that it cannot have: {exc}"
            ) from exc
        if found is not None:
            return class_name, found
    return None


def fitted(components: Mapping[str, ComponentSpec]) -> dict[str, ComponentSpec]:
    """The components of one pipeline, each completed by its architecture's ``fit``."""
    known = {name: _architecture(spec) for name, spec in components.items()}
    return {
        name: resolve(one.fit)(spec, components) if (one := known[name]) and one.fit else spec
        for name, spec in components.items()
    }


def latents_of(components: Mapping[str, ComponentSpec]) -> LatentSpec:
    """The latents of a pipeline of these components; the denoiser's definition overrides others.

    Raises:
        CheckpointError: a config's latent settings are invalid.
    """
    found: LatentSpec | None = None
    for spec in sorted(components.values(), key=lambda spec: spec.role == Role.DENOISER):
        architecture = _architecture(spec)
        if architecture is not None and architecture.latents:
            found = resolve(architecture.latents)(spec.config, found)
    return found if found is not None else PixelLatents()


def host_inputs(
    spec: ComponentSpec, sizes: Mapping[str, int], guidance: float | None = None
) -> dict[str, Any]:
    """The inputs of a component that its architecture computes on the host, as numpy arrays.

    Args:
        spec: The component.
        sizes: Dimension to its size in this call, including ``batch``.
        guidance: The scale for a denoiser with embedded guidance.

    Raises:
        InputError: the inputs and outputs of these sizes do not fit into memory.
    """
    _check_fits(spec, sizes)
    architecture = _architecture(spec)
    if architecture is None or not architecture.host_inputs:
        return {}
    given: dict[str, Any] = resolve(architecture.host_inputs)(spec, sizes, guidance)
    return given


def _check_fits(spec: ComponentSpec, sizes: Mapping[str, int]) -> None:
    """Refuse a call whose arrays, those that follow from the sizes, do not fit into memory.

    Raises:
        InputError: there is not that much memory.
    """
    signature = spec.signature.resolve(sizes)
    shapes = [tensor.shape for tensor in (*signature.inputs, *signature.outputs)]
    known = [[one for one in shape if isinstance(one, int)] for shape in shapes]
    numbers = sum(
        math.prod(k) for k, shape in zip(known, shapes, strict=True) if len(k) == len(shape)
    )
    asked = ", ".join(
        f"{name} {size}" for name, size in sizes.items() if name in spec.signature.dims
    )
    check_memory(4 * numbers, f"A call of {spec.name} for {asked}")


def held(spec: ComponentSpec, sizes: Mapping[str, int]) -> int:
    """How many numbers a denoiser or an autoencoder holds at once for one picture.

    Args:
        spec: The component.
        sizes: ``LatentSpec.dims`` of the picture; of an autoencoder ``height`` and ``width``.

    Returns:
        A lower bound; 0 if none is known.
    """
    architecture = _architecture(spec)
    kind: Any = resolve(architecture.config) if architecture and architecture.config else None
    if not (isinstance(kind, type) and issubclass(kind, ModelConfig)):
        return 0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # opening the checkpoint said what it does not know
        return kind.from_dict(spec.config).held(sizes)


def read_by(spec: ComponentSpec, names: Iterable[str]) -> list[str]:
    """The stored tensors of a component's folder that the component reads."""
    architecture = _architecture(spec)
    if architecture is None or not architecture.reads:
        return list(names)
    reads: Callable[[ComponentSpec, str], bool] = resolve(architecture.reads)
    return [name for name in names if reads(spec, name)]


def aliases(spec: ComponentSpec, layers: Iterable[str]) -> dict[str, str | Stacked]:
    """What files of adapters may also call the layers of a component: other name to layer."""
    architecture = _architecture(spec)
    if architecture is None or not architecture.aliases:
        return {}
    found: dict[str, str | Stacked] = resolve(architecture.aliases)(layers)
    return found


def called(spec: ComponentSpec, arguments: Mapping[str, Any]) -> Called | None:
    """The inputs of a component for a call of Diffusers' model, as ``Architecture.called`` says."""
    architecture = _architecture(spec)
    if architecture is None or not architecture.called:
        return None
    found: Called | None = resolve(architecture.called)(spec, arguments)
    return found


def asked(spec: ComponentSpec, arguments: Mapping[str, Any]) -> Called | None:
    """All inputs of a component for a call of Diffusers' model: those that the host computes, too.

    Args:
        spec: The component.
        arguments: The call's arguments by name, arrays for tensors; without those that are ``None``.

    Returns:
        ``None`` where the architecture takes no such call.

    Raises:
        InputError: the inputs have sizes that the component does not take.
    """
    import numpy as np

    found = called(spec, arguments)
    if found is None:
        return None
    inputs, back = dict(found[0]), found[1]
    sizes: dict[str, int] = {}
    for one in spec.signature.inputs:
        if one.name in inputs and np.ndim(inputs[one.name]) == len(one.shape):
            pairs = zip(one.shape, np.shape(inputs[one.name]), strict=True)
            sizes |= {str(dim): size for dim, size in pairs}
    for one in spec.signature.inputs:  # one number for all pictures is repeated
        if one.name in inputs and one.shape == ("batch",):
            inputs[one.name] = np.broadcast_to(inputs[one.name], sizes["batch"])
    missing = [name for name in spec.signature.input_names if name not in inputs]
    given = host_inputs(spec, sizes) if missing else {}
    inputs |= {name: given[name] for name in missing if name in given}
    spec.check_dims(spec.signature.bind(inputs, component=spec.name))
    return inputs, back


def with_hidden_states(spec: ComponentSpec) -> ComponentSpec | None:
    """A text encoder with every hidden state among its outputs; ``None`` where it has none such."""
    architecture = _architecture(spec)
    if architecture is None or not architecture.hidden_states:
        return None
    found: ComponentSpec = resolve(architecture.hidden_states)(spec)
    return found


def perturbed(component: Component, perturbation: Perturbation) -> Component:
    """A worse version of a denoiser: another entry, over the same weights.

    Raises:
        InputError: the denoiser's architecture has no worse versions.
    """
    spec = component.spec
    architecture = _architecture(spec)
    if architecture is None or not architecture.perturb:
        raise InputError(
            f"A guider asked for a worse version of {spec.name}, by {perturbation.kind!r}; a "
            f"{spec.class_name} has none. Use a guider that needs none, such as classifier-free."
        )
    # Its branch runs by itself: for one picture its batch is 1.
    guidance = spec.guidance if spec.guidance != "branches" else ""
    own = replace(spec, name=perturbation.entry, entry_of=spec.name, guidance=guidance)
    settings = (perturbation.kind, perturbation.layers, perturbation.amount)
    return replace(component, spec=own).rebuilt(
        _perturb, architecture.perturb, *settings, graph=f"{architecture.perturb} {settings}"
    )


def shallow(component: Component, layers: int) -> tuple[Component, Component] | None:
    """A denoiser that also gives its state before its last layers, and an entry of these alone.

    Args:
        component: The denoiser.
        layers: How many are the last ones; 0 for as many as its architecture chooses.

    Returns:
        Both, ``None`` if the denoiser's architecture has no such entry.

    Raises:
        InputError: this denoiser has no such entry.
    """
    architecture = _architecture(component.spec)
    if architecture is None or not architecture.shallow:
        return None
    both: tuple[Component, Component] = resolve(architecture.shallow)(component, layers)
    return both


def gated(component: Component) -> Component | None:
    """A denoiser whose cross-attentions may take what they gave before (``Architecture.gated``).

    Returns:
        It, ``None`` if the denoiser's architecture has no gate.

    Raises:
        InputError: this denoiser has none.
    """
    architecture = _architecture(component.spec)
    if architecture is None or not architecture.gated:
        return None
    found: Component = resolve(architecture.gated)(component)
    return found


def first_blocks(component: Component, first: int, last: int) -> tuple[Component, Component] | None:
    """A transformer that also gives what its middle blocks add, and an entry of the other ones.

    Args:
        component: The denoiser.
        first: How many are the first ones; 0 for none.
        last: How many are the last ones; 0 for none.

    Returns:
        Both, ``None`` if the denoiser's architecture has no such entry.

    Raises:
        InputError: this denoiser has not so many blocks.
    """
    architecture = _architecture(component.spec)
    if architecture is None or not architecture.first_blocks:
        return None
    both: tuple[Component, Component] = resolve(architecture.first_blocks)(component, first, last)
    return both


def attentions(spec: ComponentSpec) -> Attentions | None:
    """The attentions of a transformer; ``None`` where its architecture names none."""
    architecture = _architecture(spec)
    if architecture is None or not architecture.attentions:
        return None
    found: Attentions = resolve(architecture.attentions)(spec)
    return found


def image_prompts(spec: ComponentSpec) -> "Prompting | None":
    """How IP-Adapters add image prompts to a denoiser; ``None`` where its architecture names nothing."""
    architecture = _architecture(spec)
    if architecture is None or not architecture.image_prompts:
        return None
    named: Any = resolve(architecture.image_prompts)
    found: Prompting = named
    return found


def _perturb(module: Any, how: str, *settings: Any) -> Any:
    """Call a function by its import path: it imports torch, and this module does not."""
    return resolve(how)(module, *settings)


def latents_class(kind: str) -> type[LatentSpec]:
    """The ``LatentSpec`` subclass that a manifest names.

    Raises:
        InputError: no installed architecture has such latents.
    """
    if kind == PixelLatents.kind:
        return PixelLatents
    architecture = host().architectures().get(kind)
    if architecture is None or not architecture.latent_spec:
        raise InputError(f"the latents are of kind {kind!r}, which no installed architecture has")
    found: Any = resolve(architecture.latent_spec)
    if not (isinstance(found, type) and issubclass(found, LatentSpec)):
        raise InputError(f"{architecture.latent_spec} is not a LatentSpec")
    return found


def _architecture(spec: ComponentSpec) -> Architecture | None:
    return host().architectures().get(spec.class_name)
