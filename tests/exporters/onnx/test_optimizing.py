"""What the optimizer leaves of a graph, and that it is asked no more than it has to be."""

import copy
from pathlib import Path
from typing import Any

import onnx
import pytest
from onnx import numpy_helper

from perfuse import Checkpoint
from perfuse.backend import Component
from perfuse.models.registry import describe
from perfuse.sources.checkpoint import FromCheckpoint
from perfuse.sources.configs_alone import hollow_weights
from perfuse_conformance.checkpoints import write_configs
from perfuse_exporters.onnx.exporter import OnnxExporter
from perfuse_exporters.onnx.matching import matching_first_nodes

pytestmark = pytest.mark.export

#: Parts of each row: what a rule of two outputs, slices of one tensor, looks for.
PARTS = """
<ir_version: 10, opset_import: ["": 20]>
parts (float[N, 8] x) => (float[N, 4] y, float[N, 4] z, float[N, 3] u)
<int64[1] zero = {0}, int64[1] four = {4}, int64[1] five = {5}, int64[1] eight = {8}, int64[1] axis = {1}>
{
  w = Neg(x)
  y = Slice(w, zero, four, axis)
  z = Slice(w, four, eight, axis)
  v = Exp(x)
  u = Slice(v, five, eight, axis)
}
"""


def optimized(model: Any) -> list[str]:
    import onnx_ir as ir
    from onnxscript import optimizer

    found = ir.from_proto(copy.deepcopy(model))
    optimizer.optimize_ir(found, onnx_shape_inference=False)
    return [node.op_type for node in found.graph]


def test_rules_of_several_outputs_find_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    from onnxscript.rewriter.pattern import SimplePatternMatcher

    model, matched = onnx.parser.parse_model(PARTS), list[str]()
    plain = SimplePatternMatcher.match

    def watched(self: Any, whole: Any, graph: Any, node: Any, **settings: Any) -> Any:
        if not self.pattern.has_single_output_node:
            matched.append(node.op_type)
        return plain(self, whole, graph, node, **settings)

    monkeypatch.setattr(SimplePatternMatcher, "match", watched)
    expected = optimized(model)
    assert set(matched) > {"Slice"}
    matched.clear()
    with matching_first_nodes():
        assert optimized(model) == expected
    assert set(matched) == {"Slice"}
    assert SimplePatternMatcher.match is watched


def test_a_wide_transformer_holds_its_constants_once(tmp_path: Path) -> None:
    """DiT at full width: of its norms without weights each is multiplied by ones, 1152 of them."""
    whole = Checkpoint.open(write_configs(tmp_path, "dit-xl")).spec.components["transformer"]
    config = {**whole.config, "num_layers": 2}
    (spec,) = describe(whole.class_name, "transformer", "transformer", config)
    build = FromCheckpoint(spec=spec, weights=hollow_weights(spec), precision="float32")
    component = Component(spec=spec, build=build)
    (tmp_path / "graph").mkdir()
    path, _ = OnnxExporter().export_graph(component, tmp_path / "graph")
    held = [numpy_helper.to_array(one) for one in onnx.load(path).graph.initializer]
    wide = [one for one in held if one.size >= 1152]
    assert len(wide) == 1
    assert (wide[0] == 1).all()
