"""Runs as SLURM jobs: batch scripts, ranks, and what follows their end."""
