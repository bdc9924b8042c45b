"""Components on OpenVINO: CPUs, Intel GPUs and NPUs."""
