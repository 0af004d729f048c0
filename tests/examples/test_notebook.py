"""examples/notebook.ipynb runs from its first cell to its last."""

from __future__ import annotations

import pytest

from tests.support.launching import ROOT, needs_mpirun

nbformat = pytest.importorskip("nbformat")
nbclient = pytest.importorskip("nbclient")
pytest.importorskip("ipykernel")


@needs_mpirun
@pytest.mark.timeout(200)
def test_every_cell(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    folder = ROOT / "examples"
    notebook = nbformat.read(folder / "notebook.ipynb", as_version=4)
    nbclient.NotebookClient(notebook, timeout=90, resources={"metadata": {"path": str(folder)}}).execute()
    texts = [
        "".join(str(o.get("text", o.get("data", ""))) for o in c.outputs) for c in notebook.cells if "outputs" in c
    ]
    assert any("[0] epoch 4: " in text for text in texts), texts
    assert "3" in texts[-1]
