"""Starting, supervising and managing runs, on one machine or through SLURM, without a daemon.

Layers, top to bottom: ``commands``, ``sweep``, ``local`` and ``slurm``, ``record``.
"""
