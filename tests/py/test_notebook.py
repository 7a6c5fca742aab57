"""The notebook in examples/ runs from top to bottom in an empty directory, and shows what it promises."""

import json
from pathlib import Path

import pytest

NOTEBOOK = Path(__file__).resolve().parents[2] / "examples" / "train_in_a_notebook.ipynb"


def test_notebook_is_kept_without_outputs():
    cells = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    assert all(not cell["outputs"] and cell["execution_count"] is None for cell in cells if cell["cell_type"] == "code")


def test_notebook_runs(tmp_path, monkeypatch):
    pytest.importorskip("ipykernel")
    nbclient, nbformat = pytest.importorskip("nbclient"), pytest.importorskip("nbformat")
    for name in ("JUPYTER_RUNTIME_DIR", "JUPYTER_DATA_DIR", "IPYTHONDIR"):
        monkeypatch.setenv(name, str(tmp_path / name))
    work = tmp_path / "work"
    work.mkdir()
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbclient.NotebookClient(notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": str(work)}}).execute()
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    assert not [output for output in outputs if output.output_type == "error"]
    shown = [output.data for output in outputs if "data" in output]
    assert sum("image/png" in data for data in shown) == 3
    assert any("ModelConfig</caption>" in data.get("text/html", "") for data in shown)
    text = "".join(output.text for output in outputs if output.output_type == "stream")
    assert "step/s" in text and "The statement " in text
    for directory in ("numbers", "text"):
        assert (work / directory / "out" / "rwkv-final.pth").exists()
    losses = [float(line.split(",")[2]) for line in (work / "numbers" / "out" / "loss.csv").read_text().splitlines()[1:]]
    assert sum(losses[-20:]) / 20 < 0.8 * sum(losses[:5]) / 5
