"""Where pipelines come from: checkpoints, exported folders, other tools' folders, and the cache."""
