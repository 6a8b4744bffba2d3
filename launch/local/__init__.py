"""Supervised runs on this machine, and the processes below them."""
