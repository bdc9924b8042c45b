"""The kinds of language models, and Transformers' classes of each."""

__all__ = ["KINDS"]

#: Kind to the classes whose checkpoints hold one: alone, with a head for tokens, or with eyes.
KINDS = {
    "qwen3": ("Qwen3Model", "Qwen3ForCausalLM"),
    "qwen2_5_vl": ("Qwen2_5_VLForConditionalGeneration", "Qwen2_5_VLModel"),
    "qwen3_vl": ("Qwen3VLForConditionalGeneration", "Qwen3VLModel"),
    "glm": ("GlmModel", "GlmForCausalLM"),
    "gemma2": ("Gemma2Model", "Gemma2ForCausalLM"),
}
