from pathlib import Path

from tests import ROOT

"""The checkout."""
