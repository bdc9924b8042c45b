"""Language models as text encoders: Qwen 3, the text sides of Qwen 2.5 VL and Qwen 3 VL, Gemma 2, GLM."""

from perfuse.contract.architecture import Architecture
from perfuse.models.language_model.kinds import KINDS

#: The kinds with eyes, and the module that knows what these take.
_OF_HOST = {"qwen2_5_vl": "vision", "qwen3_vl": "deep_vision"}

ARCHITECTURES = tuple(
    Architecture(
        class_name=class_name,
        library="transformers",
        describe=f"{__name__}.description:describe_{kind}",
        fit=f"{__name__}.description:fit",
        host_inputs=f"{__name__}.{_OF_HOST.get(kind, 'description')}:host_inputs",
        aliases=f"{__name__}.stored:aliases",
        build=f"{__name__}.network:build",
        wrap=f"{__name__}.network:wrap",
        reads=f"{__name__}.stored:reads",
    )
    for kind, classes in KINDS.items()
    for class_name in classes
)
