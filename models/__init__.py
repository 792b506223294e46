"""One file per system, and the presets."""
