"""The notebook runs from its first cell to its last."""

import nbformat
import pytest
from nbclient import NotebookClient

from tests import ROOT

NOTEBOOK = ROOT / "examples/quickstart.ipynb"
WHOLE = 'settings = read_config_file("biased_mnist/demo")'
SHORT = """
settings |= {"global_batch": 48, "micro_batch": 24, "max_steps": 8}
settings |= {"data": {"source": %r, "image_size": 8, "rho": 0.9}}
"""


@pytest.mark.parametrize("short", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_the_notebook_runs(short, few_digits, tmp_path):
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    assert not any(cell.get("outputs") for cell in notebook.cells)
    if short:
        (training,) = [cell for cell in notebook.cells if WHOLE in cell.source]
        training.source = training.source.replace(WHOLE, WHOLE + SHORT % str(few_digits))
    resources = {"metadata": {"path": str(tmp_path)}}
    NotebookClient(notebook, timeout=1000, kernel_name="python3", resources=resources).execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    pictures = [output for output in outputs if "image/png" in output.get("data", {})]
    tables = [output for output in outputs if "text/html" in output.get("data", {})]
    assert (len(pictures), len(tables)) == (2, 2)
    assert "HSIC of f and noise" in outputs[-1]["text"]
