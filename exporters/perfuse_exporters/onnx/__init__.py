"""The ONNX exporter, for ONNX Runtime and other engines that read ONNX."""
