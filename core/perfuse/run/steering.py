"""What changes a pipeline between two calls: transforms, learned tokens, FreeU."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from perfuse.contract.spec import ComponentSpec, Role
from perfuse.errors import InputError
from perfuse.run.switches import Switches
from perfuse.run.transforms import Chosen, find_transforms
from perfuse.sources.embeddings import Embedding, read_embedding
from perfuse.sources.tokenizer import Tokenizer

__all__ = ["Steering"]


class Steering(Switches):
    """What a user changes between two calls, beside models and switches."""

    #: By tokenizer: the tokens that were added, each with its vectors [n, D].
    _learned: Mapping[str, Mapping[str, Any]] = {}
    #: By tokenizer: the one without added tokens, and the one with them.
    _with: Mapping[str, tuple[Tokenizer, Tokenizer]] = {}

    # Transforms

    def add_transform(self, text: str) -> None:
        """Rewrite the pipeline by a transform from now on, ``"NAME"`` or ``"NAME:key=value"``.

        One of the same name is replaced. Only programs of components that it changes are released.

        Raises:
            InputError: the transform is unknown or does not fit, or it rewrites components and the
                model is an export that was made without it.
        """
        (chosen,) = find_transforms([text])
        others = tuple(o for o in self._transforms if o.transform.name != chosen.transform.name)
        self._rewrite((*others, chosen))

    def remove_transform(self, name: str) -> None:
        """Run without a transform from now on; one that is not applied is no error."""
        self._rewrite(tuple(one for one in self._transforms if one.transform.name != name))

    def _rewrite(self, transforms: tuple[Chosen, ...]) -> None:
        before, kept = self.plan, self._transforms
        self._transforms, self._plan = transforms, None
        try:
            after = self.plan
        except BaseException:
            self._transforms, self._plan = kept, before
            raise
        for name in self._programs.all():
            if after.components.get(name) != before.components.get(name):
                self._programs.release(name)

    def enable_freeu(self, s1: float, s2: float, b1: float, b2: float) -> None:
        """Strengthen the denoiser's backbone by ``b1``, ``b2`` and weaken its skips by ``s1``, ``s2``.

        FreeU (Si et al. 2023, arXiv:2309.11497), which needs no training. For Stable Diffusion 1 its
        authors use ``s1=0.9, s2=0.2, b1=1.2, b2=1.4``, for XL ``0.6, 0.4, 1.1, 1.2``.

        Raises:
            InputError: a number is not positive, or the denoiser is no UNet.
        """
        self.add_transform(f"freeu:s1={s1},s2={s2},b1={b1},b2={b2}")

    def disable_freeu(self) -> None:
        """Draw without FreeU again."""
        self.remove_transform("freeu")

    def set_pag_applied_layers(self, pag_applied_layers: str | Sequence[str]) -> None:
        """The layers that perturbed-attention guidance perturbs from now on, by parts of their names.

        Raises:
            InputError: the pipeline is drawn with by no such guidance.
        """
        if not any("pag_applied_layers" in task.inputs for task in self.tasks.values()):
            raise InputError(
                f"pag_applied_layers={pag_applied_layers!r} was given; {self.spec.class_name} has no "
                "perturbed-attention guidance. Open it with enable_pag=True: AutoPipelineForText2Image."
            )
        given = pag_applied_layers
        layers = given if isinstance(given, str) else tuple(given)
        options = {**self._spec.options, "pag_applied_layers": layers}
        self._spec, self._plan = dataclasses.replace(self._spec, options=options), None

    # Learned tokens

    @property
    def learned_tokens(self) -> tuple[str, ...]:
        """The tokens that ``load_textual_inversion`` added."""
        return tuple(dict.fromkeys(name for tokens in self._learned.values() for name in tokens))

    def load_textual_inversion(
        self,
        pretrained_model_name_or_path: Any,
        token: str | Sequence[str | None] | None = None,
        tokenizer: Any = None,
        text_encoder: Any = None,
        **where: Any,
    ) -> None:
        """Add tokens whose embeddings were learned (Gal et al. 2022, arXiv:2208.01618).

        Args:
            pretrained_model_name_or_path: A ``.safetensors`` file, a folder or a Hub id that has
                ``learned_embeds.safetensors``, a dict of arrays, an array, or a list of these.
                Diffusers' layout, AUTOMATIC1111's, and SD XL's with ``clip_l`` and ``clip_g``.
            token: The word for it in prompts, or one for each; by default the one in the file, or
                the file's name.
            tokenizer: The pipeline's tokenizer to add it to, or its name; by default the first
                text encoder's.
            text_encoder: The text encoder that it was learned for, or its name.
            **where: ``weight_name``, ``subfolder``, ``revision`` and ``local_files_only`` for a
                folder or a Hub id.

        Raises:
            InputError: the file cannot be read or has another width, the token is there already,
                or the model is an export that was made without ``--transform prompts``.
        """
        given = pretrained_model_name_or_path
        several = list(given) if isinstance(given, list | tuple) else [given]
        words = [token] * len(several) if token is None or isinstance(token, str) else list(token)
        if len(words) != len(several) or (len(several) > 1 and isinstance(token, str)):
            raise InputError(
                f"{len(several)} embeddings and the tokens {token!r} were given; give one for each."
            )
        asked = self._encoder(text_encoder, tokenizer)
        learned = {name: dict(tokens) for name, tokens in self._learned.items()}
        for one, word in zip(several, words, strict=True):
            embedding = read_embedding(one, token=word, **where)
            for encoder, vectors in self._fitting(embedding, asked).items():
                tokens = learned.setdefault(_tokenizer_of(encoder), {})
                if embedding.token in tokens:
                    raise InputError(
                        f"The token {embedding.token!r} is loaded already. Unload it first, or give "
                        "another: token=."
                    )
                tokens[embedding.token] = vectors
        before = self._learned
        self._learn(learned)
        try:
            self.add_transform("prompts")
        except BaseException:
            self._learn(before)
            raise

    def unload_textual_inversion(
        self,
        tokens: str | Sequence[str] | None = None,
        tokenizer: Any = None,
        text_encoder: Any = None,
    ) -> None:
        """Take added tokens out again: some, or all.

        Args:
            tokens: The tokens; all of them by default.
            tokenizer: The only tokenizer to take them out of, or its name.
            text_encoder: The only text encoder to take them out of, or its name.

        Raises:
            InputError: none of the tokens is there.
        """
        names = [tokens] if isinstance(tokens, str) else tokens
        asked = self._encoder(text_encoder, tokenizer)
        only = _tokenizer_of(asked) if asked is not None else None
        kept = {
            name: {
                word: vectors
                for word, vectors in known.items()
                if (only is not None and name != only) or (names is not None and word not in names)
            }
            for name, known in self._learned.items()
        }
        if names is not None and kept == self._learned:
            raise InputError(
                f"{', '.join(names)} was to be unloaded; there is "
                f"{', '.join(self.learned_tokens) or 'no token'} to unload."
            )
        self._learn(kept)

    def maybe_convert_prompt(
        self, prompt: str | list[str], tokenizer: Any = None
    ) -> str | list[str]:
        """A prompt with each token of several vectors written as all of its tokens.

        Calls need no such prompt: the tokenizer reads either.
        """
        encoder = self._encoder(None, tokenizer)
        name = _tokenizer_of(encoder if encoder is not None else self._encoders()[0].name)
        expand = self.prompt_tokenizer(name).expand
        return expand(prompt) if isinstance(prompt, str) else [expand(one) for one in prompt]

    @property
    def replaced(self) -> tuple[str, ...]:
        """The attributes whose models the user replaced or may have changed, and added tokens."""
        return (*super().replaced, *self.learned_tokens)

    def prompt_tokenizer(self, name: str) -> Tokenizer:
        """A tokenizer as the steps use it, with the tokens that were added."""
        return self._with_learned(name, super().prompt_tokenizer(name))

    def _learn(self, learned: Mapping[str, Mapping[str, Any]]) -> None:
        """Use these tokens from now on, and no other, if all tokenizers take them."""
        kept = self._learned
        self._learned, self._with = learned, {}
        try:
            for name in learned:
                self.prompt_tokenizer(name)
        except BaseException:
            self._learned = kept
            raise

    def _with_learned(self, name: str, tokenizer: Tokenizer) -> Tokenizer:
        """A tokenizer with the tokens that were added to it."""
        tokens = self._learned.get(name)
        if not tokens:
            return tokenizer
        if not isinstance(tokenizer, Tokenizer):
            raise InputError(
                f"The tokens {', '.join(tokens)} were to be added to {name}, which was replaced by "
                "one of another library. Add them there, or use the checkpoint's."
            )
        found = self._with.get(name)
        if found is None or found[0] is not tokenizer:
            found = tokenizer, tokenizer.with_learned(tokens)
            self._with = {**self._with, name: found}
        return found[1]

    def _encoders(self) -> tuple[ComponentSpec, ...]:
        """The text encoders that have a tokenizer.

        Raises:
            InputError: there is none.
        """
        known = [one for one in self.spec.having(Role.TEXT_ENCODER)]
        found = tuple(one for one in known if _tokenizer_of(one.name) in self.spec.tokenizers)
        if not found:
            raise InputError(
                f"A textual inversion was asked for; {self.spec.class_name} has no text encoder "
                "with a tokenizer."
            )
        return found

    def _encoder(self, text_encoder: Any, tokenizer: Any) -> str | None:
        """The name of the text encoder that one of these stands for; ``None`` for neither."""
        if text_encoder is None and tokenizer is None:
            return None
        for one in self._encoders():
            own = {one.name: text_encoder, _tokenizer_of(one.name): tokenizer}
            for name, given in own.items():
                if given is not None and (
                    given == name if isinstance(given, str) else self._is(name, given)
                ):
                    return one.name
        names = ", ".join(one.name for one in self._encoders())
        raise InputError(
            f"A textual inversion was given for another text encoder or tokenizer than this "
            f"pipeline's; it has {names}. Give one of these, as it is or by name."
        )

    def _is(self, name: str, given: Any) -> bool:
        """Whether an object is the pipeline's model or tokenizer of a name."""
        known = [self._models.get(name)]
        if name in self.spec.tokenizers:
            known += [self._tokenizers.get(name), *self._with.get(name, ())]
        inner = getattr(given, "ours", given)  # of a tokenizer as the user sees it
        return any(inner is one for one in known if one is not None)

    def _fitting(self, embedding: Embedding, asked: str | None) -> dict[str, Any]:
        """Text encoder to the vectors of an embedding for it.

        Raises:
            InputError: they are of another width.
        """
        encoders = self._encoders()
        vectors: dict[str, Any] = {}
        names = [asked] if asked is not None else [one.name for one in encoders]
        for key, array in embedding.vectors.items():
            place = {"clip_g": "text_encoder_2", "clip_l": "text_encoder"}.get(key, names[0])
            if asked is None or place == asked:
                vectors[place] = array
        widths = {one.name: one.signature.outputs[0].shape[-1] for one in encoders}
        for name, array in vectors.items():
            if array.shape[-1] != widths.get(name):
                have = ", ".join(f"{one} {width}" for one, width in widths.items())
                raise InputError(
                    f"The textual inversion {embedding.token!r} has vectors {array.shape[-1]} wide "
                    f"for {name}; the widths here are: {have}. It was learned for another model, or "
                    "for another encoder: text_encoder=."
                )
        return vectors


def _tokenizer_of(encoder: str) -> str:
    """The name of a text encoder's tokenizer: ``tokenizer_2`` for ``text_encoder_2``."""
    return encoder.replace("text_encoder", "tokenizer")
