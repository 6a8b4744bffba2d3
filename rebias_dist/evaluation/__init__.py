"""The networks' predictions on a split and the figures from them: accuracies, bias, HSIC."""
