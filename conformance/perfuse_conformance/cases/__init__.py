"""The suite's cases: probes, draws, the models that they run on, and golden bundles."""
