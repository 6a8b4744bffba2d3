"""Sweeps: a grid of settings, each cell a run."""
