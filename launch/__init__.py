"""Starting, supervising and managing runs: on one machine or through SLURM, without a daemon."""
