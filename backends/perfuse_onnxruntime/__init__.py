"""Runs components on ONNX Runtime: the CPU, and whatever else the installed build has."""
