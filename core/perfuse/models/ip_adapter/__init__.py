"""IP-Adapter: image prompts by a second cross-attention (Ye et al. 2023, arXiv:2308.06721).

An adapter is a file of its own, not an architecture that a checkpoint names: it adds projections of
images as components, and attention and inputs to the denoiser. How it does is a file a kind of
denoiser: ``unet``, ``flux``, ``sd3``.
"""

ARCHITECTURES = ()
