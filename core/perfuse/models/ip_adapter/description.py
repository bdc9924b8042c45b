"""What an adapter's file holds, and the description of the projection that it adds, without torch."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from perfuse.contract.spec import ComponentSpec, Dim, Role, Signature
from perfuse.errors import InputError, WeightsError
from perfuse.models.shapes import floating

__all__ = ["LENGTHS", "ImageAdapter", "check_made_for", "projection", "standard"]

#: How many tokens of images to capture a graph with: sizes which no other dimension of a denoiser has.
LENGTHS = (11, 13, 17, 19, 23)
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
Shapes = Mapping[str, tuple[int, ...]]


#: The kinds of projections, and what they are called.
_KINDS = {
    "plain": "plain",
    "full": "Full",
    "plus": "Plus",
    "face": "FaceID's",
    "timed": "a resampler that is told the timestep",
}


@dataclass(frozen=True, kw_only=True)
class ImageAdapter:
    """An adapter's file, by what its tensors are called and how large they are."""

    file: Path
    #: ``"plain"`` projects an image's embedding, ``"full"`` and ``"plus"`` its states (``"plus"``
    #: with a resampler, ``"timed"`` with one that is told the timestep), ``"face"`` the embedding that
    #: a face recogniser made.
    kind: str
    #: How many tokens it makes of an image; 0 for as many as the image has states.
    tokens: int
    #: The width of what it projects, and of the tokens.
    inputs: int
    width: int
    #: The attentions that it has keys and values for.
    layers: int

    @classmethod
    def read(cls, file: Path) -> "ImageAdapter":
        """Read the header of a file in the layout of the adapters' authors.

        Raises:
            WeightsError: the file is a pickle, is damaged, or is no IP-Adapter of a known kind.
        """
        shapes = _shapes(file)
        image = {n.removeprefix("image_proj."): s for n, s in shapes.items() if "image_proj." in n}
        keys = [n for n in shapes if re.fullmatch(r"ip_adapter\.\d+\.to_k_ip\.weight", n)]
        if not image or not keys:
            raise WeightsError(
                f"{file} was to be an IP-Adapter; it has no tensors image_proj.… and "
                "ip_adapter.N.to_k_ip.weight. Name the adapter's file."
            )
        if any("_lora." in name for name in shapes) or any("perceiver_" in n for n in image):
            raise WeightsError(
                f"{file} is an IP-Adapter with LoRA weights or with two kinds of embeddings (FaceID "
                "Plus), which perfuse does not load. Use a plain, Plus, Full or FaceID projection."
            )
        try:
            kind, tokens, inputs, width = _kind(image)
        except KeyError as exc:
            raise WeightsError(
                f"{file} was to be an IP-Adapter; its projection has {', '.join(list(image)[:5])}, "
                "which is of no known kind: plain, Plus, Full, FaceID, or with time as of Stable Diffusion 3."
            ) from exc
        return cls(
            file=file, kind=kind, tokens=tokens, inputs=inputs, width=width, layers=len(keys)
        )

    @property
    def takes(self) -> str:
        """The input of its projection: the image encoder's output of that name, or the caller's."""
        return "image_embeds" if self.kind in ("plain", "face") else "penultimate_hidden_state"


def _kind(image: Shapes) -> tuple[str, int, int, int]:
    """The kind, the number of tokens, the width of the input and of the tokens."""
    if "proj.weight" in image:
        out, inputs = image["proj.weight"]
        width = image["norm.weight"][0]
        return "plain", out // width, inputs, width
    if "proj.3.weight" in image:
        return "full", 0, image["proj.0.weight"][1], image["proj.2.weight"][0]
    if "latents" in image:
        tokens = image["latents"][1]
        kind = "timed" if "time_embedding.linear_1.weight" in image else "plus"
        return kind, tokens, image["proj_in.weight"][1], image["proj_out.weight"][0]
    width = image["norm.weight"][0]
    return "face", image["proj.2.weight"][0] // width, image["proj.0.weight"][1], width


def _shapes(file: Path) -> dict[str, tuple[int, ...]]:
    if file.suffix in _PICKLES:
        raise WeightsError(
            f"{file} is a pickle, which can run any code when it is read. Take the adapter's "
            ".safetensors file; most repositories have both."
        )
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="np") as opened:
            return {
                standard(name): tuple(opened.get_slice(name).get_shape())
                for name in opened.keys()  # noqa: SIM118 - no dict
            }
    except (OSError, SafetensorError) as exc:
        raise WeightsError(
            f"{file} cannot be read as an IP-Adapter's safetensors file: {exc}. Download it again."
        ) from exc


#: What XLabs' files call the parts of an adapter of FLUX.1.
_XLABS = (
    (re.compile(r"^ip_adapter_proj_model\."), "image_proj."),
    (
        re.compile(r"^double_blocks\.(\d+)\.processor\.ip_adapter_double_stream_([kv])_proj\."),
        r"ip_adapter.\1.to_\2_ip.",
    ),
)


def standard(name: str) -> str:
    """A tensor's name in the layout of IP-Adapter's authors."""
    for pattern, ours in _XLABS:
        name = pattern.sub(ours, name)
    return name


def check_made_for(
    adapter: ImageAdapter, spec: ComponentSpec, kinds: tuple[str, ...], layers: int, width: int
) -> None:
    """Raise ``InputError`` unless an adapter is of one of these kinds, for so many attentions.

    Args:
        adapter: The adapter.
        spec: The denoiser.
        kinds: Those that its family has.
        layers: The attentions of the denoiser that read images.
        width: Of what they read.
    """
    end = "Use an adapter that was made for this family of checkpoints."
    if adapter.kind not in kinds:
        raise InputError(
            f"{adapter.file} was to be loaded; its projection is {_KINDS[adapter.kind]}, and {spec.name} "
            f"takes {', '.join(_KINDS[kind] for kind in kinds)}. {end}"
        )
    if (adapter.layers, adapter.width) != (layers, width):
        raise InputError(
            f"{adapter.file} was to be loaded; it has {adapter.layers} attentions over states "
            f"of width {adapter.width}, and {spec.name} has {layers} of width {width}. {end}"
        )


def projection(adapter: ImageAdapter, index: int) -> ComponentSpec:
    """The component that makes tokens of images: [B, …] to [B, T, C]."""
    states = adapter.takes != "image_embeds"
    shape = ("batch", "states", adapter.inputs) if states else ("batch", adapter.inputs)
    name = f"image_projection_{index}"
    return ComponentSpec(
        name=name,
        role=Role.IMAGE_PROJECTION,
        class_name="ImageProjection",
        folder=name,
        config={"kind": adapter.kind},
        signature=Signature(
            inputs=(floating(adapter.takes, *shape),),
            outputs=(floating("image_tokens", "batch", adapter.tokens or "states", adapter.width),),
        ),
        dims={"batch": Dim(example=2), **({"states": Dim(example=9)} if states else {})},
    )
