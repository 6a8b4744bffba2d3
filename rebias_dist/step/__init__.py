"""One optimizer step: the game of f and g, precision, BatchNorm, randomness, optimizers."""
