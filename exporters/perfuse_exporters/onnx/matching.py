"""Rules of onnxscript's optimizer with several outputs, matched where they could begin alone.

At every node its matcher lists the whole graph for such a rule, before it sees that the node is another
operator than the rule's first: minutes for a transformer of some thousand nodes.
"""

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

__all__ = ["matching_first_nodes"]


@contextmanager
def matching_first_nodes() -> Iterator[None]:
    """Have onnxscript see at once that a node is not the first of a rule; what it finds is the same."""
    from onnxscript.rewriter import MatchResult
    from onnxscript.rewriter.pattern import SimplePatternMatcher

    plain = SimplePatternMatcher.match

    @functools.wraps(plain)
    def match(self: Any, model: Any, graph: Any, node: Any, **settings: Any) -> Any:
        first = self.pattern.output_nodes[0].op_identifier()
        several = not self.pattern.has_single_output_node
        if several and first is not None and first != node.op_identifier():
            return MatchResult().fail("The rule begins with another operator.")
        return plain(self, model, graph, node, **settings)

    SimplePatternMatcher.match = match
    try:
        yield
    finally:
        SimplePatternMatcher.match = plain
