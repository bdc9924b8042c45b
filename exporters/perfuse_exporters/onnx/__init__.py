"""Graphs for ONNX Runtime, and whatever else reads ONNX."""
