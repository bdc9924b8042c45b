"""OpenVINO IR."""
