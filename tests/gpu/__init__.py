"""Properties of training on a GPU; skipped where there is none."""
