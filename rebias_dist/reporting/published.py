"""Published accuracies, from ``published.csv``: each row with its source."""

from __future__ import annotations

from functools import cache
from importlib import resources

import pandas as pd


@cache
def published() -> pd.DataFrame:
    """Return all published accuracies in the order of their tables.

    Columns: ``dataset``; ``method``, its name here, empty for one that is not offered; ``label``;
    ``measure``; ``rho``, the training correlation of Biased-MNIST, else NaN; ``percent``;
    ``source``. The measure is 'unbiased' for Biased-MNIST. For 9-class ImageNet it is 'biased'
    (the validation images), 'unbiased' (their mean over cells of class and texture) or
    'imagenet-a'.
    """
    with resources.files(__package__).joinpath("published.csv").open(encoding="utf-8") as file:
        return pd.read_csv(file).fillna({"method": ""})
