"""The encoders of T5 and UMT5, as Transformers saves them (Raffel et al. 2020, arXiv:1910.10683)."""

from perfuse.contract.architecture import Architecture

ARCHITECTURES = tuple(
    Architecture(
        class_name=name,
        library="transformers",
        config=f"{__name__}.description:T5Config",
        describe=f"{__name__}.description:describe{face}",
        fit=f"{__name__}.description:fit",
        host_inputs=f"{__name__}.description:host_inputs",
        called=f"{__name__}.description:called",
        original=f"{__name__}.original:original" if name == "T5EncoderModel" else "",
        aliases=f"{__name__}.original:aliases",
        build=f"{__name__}.network:build",
        wrap=f"{__name__}.network:wrap",
    )
    for name, face in {"T5EncoderModel": "", "UMT5EncoderModel": "_multilingual"}.items()
)
