"""The machinery around training: ranks, precision, randomness, state on disk, telemetry."""
