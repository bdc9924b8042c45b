"""Runs and exports components with ExecuTorch: XNNPACK's kernels on the CPU, and its own."""
