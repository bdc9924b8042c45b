"""A simulated accelerator: a CPU that enforces what accelerators enforce."""
