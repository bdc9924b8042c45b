"""BERT, as Transformers saves it (Devlin et al. 2019, arXiv:1810.04805)."""

from perfuse.contract.architecture import Architecture

ARCHITECTURES = (
    Architecture(
        class_name="BertModel",
        library="transformers",
        config=f"{__name__}.description:BertConfig",
        describe=f"{__name__}.description:describe",
        fit=f"{__name__}.description:fit",
        host_inputs=f"{__name__}.description:host_inputs",
        reads=f"{__name__}.description:reads",
        build=f"{__name__}.network:build",
        wrap=f"{__name__}.network:wrap",
    ),
)
