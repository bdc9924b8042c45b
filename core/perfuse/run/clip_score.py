"""How well a picture shows its prompt, after CLIP.

Hessel et al. 2021, "CLIPScore: A Reference-free Evaluation Metric for Image Captioning",
https://arxiv.org/abs/2104.08718, in the scale that text-to-image papers use: 100 is the most.
"""

import numpy as np
from numpy.typing import NDArray

from perfuse.errors import InputError
from perfuse.plugins import missing_modules

__all__ = ["ClipScore"]


class ClipScore:
    """A CLIP model, on the processor, that scores pictures.

    Args:
        model: A folder that transformers saved a CLIP model and its processor into, or the name of
            one on the Hugging Face Hub. Weights are read from safetensors files only.
        offline: Whether a model of the Hub has to be in the local cache.

    Raises:
        InputError: torch or transformers is not installed, or there is no CLIP model to read.
    """

    def __init__(self, model: str, *, offline: bool = False) -> None:
        if missing := missing_modules(("torch", "transformers")):
            raise InputError(
                f"--clip {model} was given; {' and '.join(missing)} is not installed. Run: pip "
                "install 'perfuse[torch]'"
            )
        from safetensors import SafetensorError
        from transformers import AutoConfig, CLIPModel, CLIPProcessor

        try:
            kind = AutoConfig.from_pretrained(model, local_files_only=offline).model_type
            if kind != "clip":
                raise InputError(
                    f"--clip {model} was given; it is a model of type {kind}, not clip."
                )
            self._model = CLIPModel.from_pretrained(
                model, use_safetensors=True, local_files_only=offline
            ).eval()
            self._processor = CLIPProcessor.from_pretrained(model, local_files_only=offline)
        except (OSError, ValueError, RuntimeError, SafetensorError) as error:
            lines = str(error).splitlines() or [type(error).__name__]
            raise InputError(f"--clip {model} was given; it cannot be read: {lines[0]}") from error
        self._tokens = self._model.config.text_config.max_position_embeddings

    def __call__(self, picture: NDArray[np.float32], prompt: str) -> float:
        """The score of a picture.

        Args:
            picture: [H, W, C] in [0, 1], with one channel or three.
            prompt: What it was to show; what is beyond the model's length is left out.

        Returns:
            100 · max(cosine of the two embeddings, 0).
        """
        import torch

        pixels = np.rint(np.clip(picture, 0, 1) * 255).astype(np.uint8)
        pixels = np.repeat(pixels, 3, axis=2) if pixels.shape[2] == 1 else pixels
        inputs = self._processor(
            text=[prompt],
            images=[pixels],
            return_tensors="pt",
            input_data_format="channels_last",
            truncation=True,
            max_length=self._tokens,
        )
        with torch.no_grad():
            found = self._model(**inputs)
        cosine = torch.cosine_similarity(found.text_embeds, found.image_embeds)
        return 100 * max(cosine.item(), 0.0)
