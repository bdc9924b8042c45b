"""Adding calls to a graph, with the sizes and dtypes of what they return."""

from collections.abc import Callable
from typing import Any

from torch.fx import Graph, Node
from torch.fx.node import map_arg

__all__ = ["call", "value"]


def value(node: Node) -> Any:
    """What a node returns, without numbers: a tensor of no memory, or several."""
    return node.meta.get("val")


def call(graph: Graph, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Node:
    """Add a call where the graph's insertion point is."""
    node = graph.call_function(function, args, kwargs)
    given, named = map_arg((args, kwargs), value)
    node.meta["val"] = function(*given, **named)
    return node
