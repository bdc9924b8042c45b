"""Classes of Diffusers that perfuse leaves out, and what each of them would need."""

from collections.abc import Mapping

from perfuse.errors import CheckpointError

__all__ = ["LEFT_OUT", "check_left_out"]

#: Class name to what it needs, and what to use instead.
LEFT_OUT: Mapping[str, str] = {
    "StableUnCLIPPipeline": "It needs Karlo's prior, a PriorTransformer with a text encoder and a "
    "scheduler of its own, which makes a picture's embedding of the prompt. Where there is a picture "
    "or an embedding, open the checkpoint of a StableUnCLIPImg2ImgPipeline.",
    "ConsistencyDecoderVAE": "Its decoder is a diffusion model of 621 million parameters, with steps "
    "and noise of its own. Use the checkpoint's AutoencoderKL, or an AsymmetricAutoencoderKL.",
}


def check_left_out(class_name: str, *, asked: str) -> None:
    """Raise ``CheckpointError`` for a class that is left out.

    Args:
        class_name: The class.
        asked: What named it: ``"vae"``.
    """
    if class_name in LEFT_OUT:
        raise CheckpointError(
            f"{asked} is a {class_name}, which perfuse leaves out. {LEFT_OUT[class_name]}"
        )
