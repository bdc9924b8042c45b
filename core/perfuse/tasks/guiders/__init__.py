"""Guidance methods (guiders): one file each. Importing this package imports none of them.

Pass one as ``pipe(…, guider=…)``; by default a task makes one from ``guidance_scale``.
"""

import re
from pathlib import Path
from typing import TYPE_CHECKING

from perfuse._lazy import lazy

if TYPE_CHECKING:
    from perfuse.tasks.guiders.apg import AdaptiveProjectedGuidance as AdaptiveProjectedGuidance
    from perfuse.tasks.guiders.apg_mix import (
        AdaptiveProjectedMixGuidance as AdaptiveProjectedMixGuidance,
    )
    from perfuse.tasks.guiders.auto_guidance import AutoGuidance as AutoGuidance
    from perfuse.tasks.guiders.cfg_zero_star import (
        ClassifierFreeZeroStarGuidance as ClassifierFreeZeroStarGuidance,
    )
    from perfuse.tasks.guiders.classifier_free import (
        ClassifierFreeGuidance as ClassifierFreeGuidance,
    )
    from perfuse.tasks.guiders.embedded import EmbeddedGuidance as EmbeddedGuidance
    from perfuse.tasks.guiders.fdg import FrequencyDecoupledGuidance as FrequencyDecoupledGuidance
    from perfuse.tasks.guiders.instruct_pix2pix import (
        InstructPix2PixGuidance as InstructPix2PixGuidance,
    )
    from perfuse.tasks.guiders.length_preserving import (
        LengthPreservingGuidance as LengthPreservingGuidance,
    )
    from perfuse.tasks.guiders.mambo_g import MagnitudeAwareGuidance as MagnitudeAwareGuidance
    from perfuse.tasks.guiders.none import NoGuidance as NoGuidance
    from perfuse.tasks.guiders.pag import PAGGuidance as PAGGuidance
    from perfuse.tasks.guiders.perturbed_attention import (
        PerturbedAttentionGuidance as PerturbedAttentionGuidance,
    )
    from perfuse.tasks.guiders.seg import SmoothedEnergyGuidance as SmoothedEnergyGuidance
    from perfuse.tasks.guiders.slg import SkipLayerGuidance as SkipLayerGuidance
    from perfuse.tasks.guiders.tcfg import (
        TangentialClassifierFreeGuidance as TangentialClassifierFreeGuidance,
    )
    from perfuse.tasks.guiders.truncated import TruncatedGuidance as TruncatedGuidance

#: A guider's name ends in Guidance; what several share is a class of another name.
_CLASS = re.compile(r"^class ([A-Z]\w*Guidance)\(", re.MULTILINE)

#: File to the guiders that it defines.
FILES = {
    file.stem: tuple(_CLASS.findall(file.read_text(encoding="utf-8")))
    for file in sorted(Path(__file__).parent.glob("*.py"))
}

__getattr__, __dir__ = lazy(__name__, FILES)
