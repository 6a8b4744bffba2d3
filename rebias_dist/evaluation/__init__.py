"""What networks say of a split, and what follows: accuracies, bias, calibration, HSIC."""
