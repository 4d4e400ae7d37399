"""The notebook runs from its first cell to its last, and the README's Python comes out of it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

from clipautt.action_units import phrases
from clipautt.backbones.loading import BackboneConfig, load_backbone
from clipautt.datasets.synthetic.generate import SyntheticConfig, generate
from clipautt.model.checkpoint import save_checkpoint
from tests.support.fakes import fake_checkpoint

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOK = Path(__file__).with_name("researchers_desk.ipynb")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder like that of a demo: videos of three people, and a checkpoint that nobody trained."""
    folder = tmp_path_factory.mktemp("run")
    people = {"source_subjects": 0, "source_val_subjects": 0, "target_subjects": 3, "clips_per_target_subject": 3}
    generate(SyntheticConfig(**people), folder / "data")  # type: ignore[arg-type]
    made = fake_checkpoint(backbone=load_backbone(BackboneConfig()), phrases=phrases(), subject_baseline="median")
    save_checkpoint(made, folder / "train/demo/checkpoints/median")
    return folder


def code_of(notebook: Any) -> str:
    return "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "code")


def test_the_notebook_runs(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLIPAUTT_RUN", str(run))
    monkeypatch.setenv("CLIPAUTT_OUT", str(tmp_path / "desk"))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    NotebookClient(notebook, timeout=240, kernel_name="python3", resources={"metadata": {"path": tmp_path}}).execute()
    shown = {kind for cell in notebook.cells for output in cell.get("outputs", ()) for kind in output.get("data", ())}
    assert {"text/html", "image/png"} <= shown, "the answer shows itself, and its figure"
    assert (tmp_path / "desk/study/codebook.csv").is_file() and (tmp_path / "desk/windows.csv").is_file()


def test_no_output_is_stored() -> None:
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    for cell in notebook.cells:
        assert not cell.get("outputs") and cell.get("execution_count") is None, cell.source


def test_the_readme_s_python_comes_out_of_the_notebook() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    lines = [line.partition("  #")[0].rstrip() for line in block.splitlines() if line.strip()]
    code = code_of(nbformat.read(NOTEBOOK, as_version=4))
    missing = [line for line in lines if line not in code]
    assert not missing and 5 <= len(lines) <= 12
