"""Two layers of each family's transformer at its real width: beside Diffusers' own module, and on engines.

One thread, one process, the same random weights, one picture of a few hundred tokens; sides take turns. What
is compared is the processor's time, which other programs beside it hardly change; the predictions are
compared, too, so that the work is the same.
"""

import tempfile
import time
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from sidebyside import Row, command, compare, in_turns, say

from perfuse import ArtifactStore, Checkpoint
from perfuse.backend import Component
from perfuse.contract.spec import ComponentSpec
from perfuse.contract.target import Target
from perfuse.models.building import Given
from perfuse.models.positions import grid
from perfuse.models.registry import called, describe, host_inputs
from perfuse.plugins import host
from perfuse_conformance.checkpoints import randomise, write_configs

#: Rows and columns of tokens of the picture, and words of the prompt.
_SIDE, _WORDS = 16, 64
#: A thousand times it is a number in bfloat16, in which Diffusers multiplies it; perfuse has it in float32.
_GUIDANCE = 4.0
#: The most that perfuse's module may take of the time of Diffusers'.
_PROMISED = 1.05
#: The largest difference of two predictions, in their standard deviation.
_ALIKE = {"float32": 1e-3, "bfloat16": 0.2}
_ENGINES = ("onnxruntime:cpu", "openvino:CPU")

Arrays = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Family:
    """One real configuration, cut to two layers of each kind."""

    #: Fields of the config that count layers.
    layers: tuple[str, ...] = ("num_layers",)
    other: Mapping[str, Any] = field(default_factory=dict)
    #: Latents a side of a token: 2 where the transformer, or what is before it, joins 2×2.
    patch: int = 2
    #: Diffusers' arguments from perfuse's inputs.
    arguments: Callable[[ComponentSpec, Arrays], dict[str, Any]]


def _sd3(spec: ComponentSpec, given: Arrays) -> dict[str, Any]:
    same = {name: given[name] for name in ("encoder_hidden_states", "pooled_projections")}
    return {"hidden_states": given["sample"], "timestep": given["timestep"], **same}


def _flux(spec: ComponentSpec, given: Arrays) -> dict[str, Any]:
    names = ("encoder_hidden_states", "pooled_projections", "guidance")
    same = {name: given[name] for name in names if name in given}
    places = {"img_ids": grid(_SIDE, _SIDE, 0), "txt_ids": np.zeros((_WORDS, 3))}
    return {
        "hidden_states": given["sample"],
        "timestep": given["timestep"] / 1000,
        **same,
        **places,
    }


def _chroma(spec: ComponentSpec, given: Arrays) -> dict[str, Any]:
    seen = np.ones((1, _WORDS + _SIDE**2), dtype=np.float32)
    return {**_flux(spec, given), "attention_mask": seen}


def _klein(spec: ComponentSpec, given: Arrays) -> dict[str, Any]:
    words = np.zeros((_WORDS, 4))
    words[:, 3] = np.arange(_WORDS)
    picture = np.pad(grid(_SIDE, _SIDE, 0), ((0, 0), (0, 1)))
    return {**_flux(spec, given), "img_ids": picture, "txt_ids": words}


def _qwen(spec: ComponentSpec, given: Arrays) -> dict[str, Any]:
    return {
        "hidden_states": given["sample"],
        "encoder_hidden_states": given["encoder_hidden_states"],
        "timestep": given["timestep"] / 1000,
        "img_shapes": [[(1, _SIDE, _SIDE)]],
    }


def _qwen_21(spec: ComponentSpec, given: Arrays) -> dict[str, Any]:
    drawn = np.zeros((1, _WORDS + _SIDE**2 // 4), dtype=bool)
    drawn[:, _WORDS:] = True
    seen = np.ones((1, _WORDS), dtype=np.int64)
    return {**_qwen(spec, given), "img_mask": drawn, "encoder_hidden_states_mask": seen}


def _pixart(spec: ComponentSpec, given: Arrays) -> dict[str, Any]:
    names = ("encoder_hidden_states", "encoder_attention_mask", "timestep")
    told = {name: given.get(name) for name in ("resolution", "aspect_ratio")}
    same = {name: given[name] for name in names}
    return {"hidden_states": given["sample"], **same, "added_cond_kwargs": told}


def _sana(spec: ComponentSpec, given: Arrays) -> dict[str, Any]:
    names = ("encoder_hidden_states", "encoder_attention_mask", "timestep")
    return {"hidden_states": given["sample"], **{name: given[name] for name in names}}


def _dit(spec: ComponentSpec, given: Arrays) -> dict[str, Any]:
    same = {name: given[name] for name in ("timestep", "class_labels")}
    return {"hidden_states": given["sample"], **same}


def _aura(spec: ComponentSpec, given: Arrays) -> dict[str, Any]:
    states = given["encoder_hidden_states"]
    told = given["timestep"] / 1000
    return {"hidden_states": given["sample"], "encoder_hidden_states": states, "timestep": told}


def _cogview(spec: ComponentSpec, given: Arrays) -> dict[str, Any]:
    same = {name: given[name] for name in ("encoder_hidden_states", "timestep")}
    names = ("original_size", "crop_coords", "target_size")
    sizes = dict(zip(names, np.split(given["sizes"], 3, axis=1), strict=True))
    return {"hidden_states": given["sample"], **same, **sizes}


def _hunyuan(spec: ComponentSpec, given: Arrays) -> dict[str, Any]:
    texts = [name for name in given if name.startswith(("encoder_hidden", "text_embedding"))]
    told = {name: given[name] for name in ("timestep", *texts)}
    rows, columns = given["row_rotary"], given["column_rotary"]
    tables = []
    for i in range(2):  # cosines, sines: each twice, for both channels of a pair
        sides = (columns[i][None].repeat(_SIDE, 0), rows[i][:, None].repeat(_SIDE, 1))
        table = np.concatenate(sides, axis=-1).reshape(_SIDE**2, -1)
        tables.append(table.repeat(2, axis=1))
    return {"hidden_states": given["sample"], **told, "image_rotary_emb": tables}


def _z_image(spec: ComponentSpec, given: Arrays) -> dict[str, Any]:
    pictures = [one[:, None] for one in given["sample"]]
    return {"x": pictures, "t": 1 - given["timestep"] / 1000, "cap_feats": _texts(given)}


def _lumina(spec: ComponentSpec, given: Arrays) -> dict[str, Any]:
    seen = np.ones((1, _WORDS), dtype=np.int64)
    told = {"timestep": 1 - given["timestep"] / 1000, "encoder_attention_mask": seen}
    states = given["encoder_hidden_states"]
    return {"hidden_states": given["sample"], "encoder_hidden_states": states, **told}


def _texts(given: Arrays) -> list[Any]:
    return list(given["encoder_hidden_states"])


_BOTH = ("num_layers", "num_single_layers")
FAMILIES = {
    "pixart-sigma": Family(arguments=_pixart),
    "dit-xl": Family(arguments=_dit),
    "hunyuan-dit": Family(arguments=_hunyuan),
    "sana-1.6b": Family(arguments=_sana, patch=1),
    "lumina2": Family(layers=("num_layers", "num_refiner_layers"), arguments=_lumina),
    "sd3.5-medium": Family(other={"dual_attention_layers": [0]}, arguments=_sd3),
    "klein-4b": Family(layers=_BOTH, arguments=_klein, patch=1),
    "z-image-turbo": Family(layers=("n_layers", "n_refiner_layers"), arguments=_z_image),
    "cogview4": Family(arguments=_cogview),
    "qwen-image-2.1": Family(arguments=_qwen_21, patch=1),
    "qwen-image": Family(arguments=_qwen),
    "chroma": Family(layers=_BOTH, arguments=_chroma),
    "aura-flow": Family(layers=("num_mmdit_layers", "num_single_dit_layers"), arguments=_aura),
    "flux-dev": Family(layers=_BOTH, arguments=_flux),
}


def options(parser: ArgumentParser) -> None:
    parser.add_argument("--case", choices=FAMILIES, help="one family; all by default")
    parser.add_argument(
        "--engines", default=",".join(_ENGINES), help="some of %(default)s, or none"
    )


def measure(options: Namespace) -> list[Row]:
    import torch

    torch.set_num_threads(1)
    rounds = 1 if options.quick else (options.rounds or 5)
    cases = [options.case] if options.case else list(FAMILIES)
    rows = []
    for case in cases:
        rows += _family(case, rounds, [one for one in options.engines.split(",") if one])
    return rows


def _family(case: str, rounds: int, engines: list[str]) -> list[Row]:
    import diffusers

    family = FAMILIES[case]
    with tempfile.TemporaryDirectory() as folder:
        whole = Checkpoint.open(write_configs(Path(folder), case)).spec.components["transformer"]
    config = {**whole.config, **dict.fromkeys(family.layers, 2), **family.other}
    (spec,) = describe(whole.class_name, "transformer", "transformer", config)
    say(f"{case}: random weights")
    theirs = randomise(getattr(diffusers, spec.class_name).from_config(config)).eval()
    given = _given(spec, family)
    rows = []
    for precision in ("float32", "bfloat16"):
        rows.append(_modules(case, family, spec, theirs, given, precision, rounds))
        if precision == "float32":
            for engine in engines:
                rows.append(_engine(case, spec, theirs, given, engine, rounds))
    return rows


def _given(spec: ComponentSpec, family: Family) -> Arrays:
    """perfuse's inputs for one picture, as numpy arrays; what the host computes among them."""
    side = _SIDE * family.patch
    sizes = {"batch": 1, "sequence": _WORDS, "image_sequence": _SIDE**2}
    sizes |= {"latent_height": side, "latent_width": side, "height": 8 * side, "width": 8 * side}
    rng = np.random.default_rng(0)
    given = dict(host_inputs(spec, sizes, _GUIDANCE))
    ones = {"encoder_attention_mask": np.ones((1, _WORDS), dtype=np.int64)}
    ones |= {"timestep": np.full(1, 500, np.float32), "class_labels": np.full(1, 7, np.int64)}
    ones |= {
        f"text_embedding_mask{end}": np.ones((1, length), dtype=np.int64)
        for end, length in (("", 77), ("_t5", 256))
    }
    ones |= {"sizes": np.array([[512, 512, 0, 0, 512, 512]], np.float32)}
    for tensor in spec.signature.inputs:
        if tensor.name in given:
            continue
        if tensor.name in ones:
            given[tensor.name] = ones[tensor.name]
            continue
        shape = tuple(int(size) for size in tensor.resolve(sizes))
        hidden = tensor.name.endswith(("_bias", "_padding"))
        drawn = rng.standard_normal(shape, np.float32)
        given[tensor.name] = np.zeros(shape, np.float32) if hidden else drawn
    if spec.class_name == "QwenImage21Transformer2DModel":
        from perfuse.models.qwen_image_21_transformer.description import told_of

        given |= told_of(spec, given["encoder_hidden_states"])
    elif "picture_rotary" in given and (found := called(spec, family.arguments(spec, given))):
        given |= found[0]
    return {tensor.name: given[tensor.name] for tensor in spec.signature.inputs}


def _modules(
    case: str,
    family: Family,
    spec: ComponentSpec,
    theirs: Any,
    given: Arrays,
    precision: str,
    rounds: int,
) -> Row:
    """perfuse's program beside Diffusers' module, which have the same tensors in memory."""
    import torch

    dtype = getattr(torch, precision)
    theirs = theirs.to(dtype)
    component = Component(spec=spec, build=Given(spec=spec, module=theirs), precision=precision)
    target = Target.parse("torch:cpu")
    program = host().backend("torch").prepare(component, target, ArtifactStore(Path("unused")))
    ours = {name: torch.from_numpy(array) for name, array in given.items()}
    told = _tensors(family.arguments(spec, given), dtype)
    drawn: dict[str, Any] = {}

    def run(name: str, call: Callable[[], Any]) -> Callable[[], float]:
        def timed() -> float:
            with torch.no_grad():
                began = time.process_time()
                drawn[name] = call()
                return time.process_time() - began

        return timed

    sides = {
        "ours": run("ours", lambda: next(iter(program(**ours).values()))),
        "theirs": run("theirs", lambda: theirs(**told, return_dict=False)[0]),
    }
    for side in sides.values():
        side()
    difference = _difference(drawn["ours"], drawn["theirs"])
    if difference > _ALIKE[precision]:
        raise SystemExit(f"{case}: predictions differ by {difference:.2g} of their deviation.")
    say(f"{case}, {precision}, torch")
    found = in_turns(rounds, sides)
    return compare(
        f"Two layers of {case}, {precision}, torch",
        found["ours"],
        found["theirs"],
        unit="s",
        against="Diffusers",
        target=_PROMISED,
        note=f"The predictions differ by {difference:.1g} of their deviation.",
    )


def _engine(
    case: str, spec: ComponentSpec, theirs: Any, given: Arrays, engine: str, rounds: int
) -> Row:
    """An engine beside perfuse's module on torch, in float32."""
    component = Component(spec=spec, build=Given(spec=spec, module=theirs))
    say(f"{case}, float32, {engine}")
    with tempfile.TemporaryDirectory() as folder:
        programs = {
            target: host()
            .backend(Target.parse(target).backend)
            .prepare(component, Target.parse(target), ArtifactStore(Path(folder)))
            for target in (engine, "torch:cpu")
        }
        drawn = {target: next(iter(one(**given).values())) for target, one in programs.items()}

        def run(target: str) -> Callable[[], float]:
            def timed() -> float:
                began = time.process_time()
                programs[target](**given)
                return time.process_time() - began

            return timed

        found = in_turns(rounds, {target: run(target) for target in programs})
        for program in programs.values():
            program.close()
    difference = _difference(drawn[engine], drawn["torch:cpu"])
    return compare(
        f"Two layers of {case}, float32, {engine}",
        found[engine],
        found["torch:cpu"],
        unit="s",
        against="torch",
        target=1.0,
        note=f"The predictions differ by {difference:.1g} of their deviation.",
    )


def _tensors(value: Any, dtype: Any) -> Any:
    """The same with every array as a tensor, numbers that are no integers in the precision."""
    import torch

    if isinstance(value, dict):
        return {name: _tensors(one, dtype) for name, one in value.items()}
    if isinstance(value, list):
        return [_tensors(one, dtype) for one in value]
    if not isinstance(value, np.ndarray):
        return value
    tensor = torch.from_numpy(np.ascontiguousarray(value))
    return tensor.to(dtype) if tensor.is_floating_point() else tensor


def _difference(ours: Any, theirs: Any) -> float:
    """The largest difference, in standard deviations; of a picture in a list, of fewer channels."""
    theirs = theirs[0][:, 0][None] if isinstance(theirs, list) else theirs
    a, b = (np.asarray(one.float() if hasattr(one, "float") else one) for one in (ours, theirs))
    b = b[:, -a.shape[1] :] if a.ndim == 3 else b[:, : a.shape[1]]
    sign = -1.0 if (a * b).mean() < 0 else 1.0  # some count time the other way
    return float(np.abs(a - sign * b).max() / b.std())


if __name__ == "__main__":
    command(measure, __doc__, options)
