"""The notebook runs from top to bottom, in a few steps."""

import pathlib

import pytest

ROOT = pathlib.Path(__file__).parent.parent
NOTEBOOK = ROOT / "launch" / "colab.ipynb"


def test_it_is_a_valid_notebook_without_outputs():
  nbformat = pytest.importorskip("nbformat")
  notebook = nbformat.read(NOTEBOOK, as_version=4)
  nbformat.validate(notebook)
  for cell in notebook.cells:
    if cell.cell_type == "code":
      assert not cell.outputs
      compile(cell.source, "cell", "exec")


@pytest.mark.long
def test_it_runs(tmp_path, monkeypatch):
  nbformat = pytest.importorskip("nbformat")
  nbclient = pytest.importorskip("nbclient")
  monkeypatch.setenv("VIT_SSL_JAX_SMOKE", "1")
  monkeypatch.setenv("VIT_SSL_JAX_OUT", str(tmp_path))
  monkeypatch.setenv("XLA_FLAGS", "")
  notebook = nbformat.read(NOTEBOOK, as_version=4)
  resources = {"metadata": {"path": str(ROOT)}}
  nbclient.NotebookClient(
    notebook, timeout=600, resources=resources, kernel_name="python3"
  ).execute()
  assert (tmp_path / "report.html").stat().st_size > 100_000
  assert (tmp_path / "model.safetensors").is_file()
  kinds = {
    kind
    for cell in notebook.cells
    for output in cell.get("outputs", [])
    for kind in output.get("data", {})
  }
  assert {"image/png", "text/html"} <= kinds
