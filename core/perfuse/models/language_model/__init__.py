"""Language models as text encoders: Qwen 3, the text sides of Qwen 2.5 VL and Qwen 3 VL, Gemma 2."""

from perfuse.contract.architecture import Architecture
from perfuse.models.language_model.kinds import KINDS

ARCHITECTURES = tuple(
    Architecture(
        class_name=class_name,
        library="transformers",
        describe=f"{__name__}.description:describe_{kind}",
        fit=f"{__name__}.description:fit",
        host_inputs=f"{__name__}.description:host_inputs",
        build=f"{__name__}.network:build",
        wrap=f"{__name__}.network:wrap",
    )
    for kind, classes in KINDS.items()
    for class_name in classes
)
