"""A supervised run on this machine: attempt after attempt of one torchrun."""
