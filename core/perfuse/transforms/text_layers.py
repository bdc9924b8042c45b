"""Other hidden states of the language model that reads prompts than the denoiser was trained with."""

from dataclasses import dataclass, replace

from perfuse.contract.hooks import TransformManifest
from perfuse.contract.spec import Role
from perfuse.contract.transform import Plan, Transform

__all__ = ["TRANSFORMS", "TextLayers"]

TRANSFORMS = (
    TransformManifest(
        name="text-layers",
        impl=f"{__name__}:TextLayers",
        summary="hidden states that prompts are read by, of a language model: text-layers:layers=10+20+30",
    ),
)


@dataclass(frozen=True, kw_only=True)
class Options:
    """Which hidden states are joined."""

    #: As Transformers counts them: 0 the embeddings, then a layer each, the last one normed.
    layers: tuple[int, ...] = ()


class TextLayers(Transform):
    """Has a language model give other layers' states, of which there must be as many channels.

    A pipeline of a checkpoint applies it by itself where a call has ``text_encoder_out_layers``. An
    export has to be made with it.
    """

    Options = Options
    approximate = True

    def apply(self, plan: Plan, options: object) -> Plan:
        # Listing transforms loads no numpy.
        from perfuse.models.language_model.description import reading, settings_of

        assert isinstance(options, Options)
        denoiser, layers = plan.spec.denoiser, options.layers
        readers = [one for one in plan.components.values() if one.spec.role == Role.TEXT_ENCODER]
        if not denoiser.reads_layers or len(readers) != 1:
            raise self.refuse("this pipeline has no language model whose layers can be chosen.")
        (reader,) = readers
        last, count = settings_of(reader.spec).num_hidden_layers, len(denoiser.reads_layers)
        fits = all(-last - 1 <= i <= last for i in layers)
        if len({i % (last + 1) for i in layers}) != count or len(layers) != count or not fits:
            raise self.refuse(
                f"layers={layers} were given. Give {count} that differ, of 0 to {last}: "
                f"{reader.name} has {last} layers."
            )
        asked = replace(denoiser, reads_layers=layers, reads_normed=True)
        return plan.with_component(reader.with_spec(reading(reader.spec, asked)))
