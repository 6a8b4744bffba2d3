"""Sweeps: every combination of some settings is a cell, and each cell is a run."""
