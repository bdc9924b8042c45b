"""Rewriting captured graphs so that every exporter can take them: one file a pass.

Perfuse's own models are written for exporters; models of other libraries are not. A pass replaces
operations that engines lack by ones that they have, and leaves a graph without them as it is. Names
of inputs and weights stay.
"""

from torch.export import ExportedProgram

from perfuse.passes.attention import ungrouped
from perfuse.passes.booleans import logical
from perfuse.passes.complex_numbers import real
from perfuse.passes.constants import computed
from perfuse.passes.copies import spread
from perfuse.passes.diagonals import masked_diagonals
from perfuse.passes.dropout import kept
from perfuse.passes.inline import inlined
from perfuse.passes.squeeze import squeezed

__all__ = ["neutral"]


def neutral(program: ExportedProgram) -> ExportedProgram:
    """Rewrite a captured graph in place, and return it."""
    rewrites = (
        inlined,
        kept,
        squeezed,
        masked_diagonals,
        spread,
        logical,
        ungrouped,
        real,
        computed,
    )
    for rewrite in rewrites:
        if rewrite(program):
            program.graph.eliminate_dead_code()
            program.graph.lint()
            program.graph_module.recompile()
    return program
