"""ONNX Runtime itself, imported with its telemetry off."""

import os
from typing import Any

__all__ = ["import_onnxruntime"]


def import_onnxruntime() -> Any:
    """The module ``onnxruntime``; every import of it here goes through this.

    Builds since 1.31 hold a telemetry client. It begins when the module is imported: it writes an
    id into the temporary folder (``.ses``) and events into a database in the home folder, and sends
    them. Only the environment variable stops that; ``disable_telemetry_events`` comes too late for
    the files, and is for a process that imported the module before.
    """
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    import onnxruntime

    onnxruntime.disable_telemetry_events()
    return onnxruntime
