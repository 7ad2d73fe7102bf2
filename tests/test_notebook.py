"""The notebook runs from its first cell to its last, offline."""

from __future__ import annotations

import ast
import json
from pathlib import Path
from typing import Any

import numpy as np
from extras import needs

from spectrum_diffusion.core.summary import Summary

FILE = Path(__file__).parents[1] / "examples" / "first_five_minutes.ipynb"
NOTEBOOK = json.loads(FILE.read_text(encoding="utf-8"))


def run(cell: str, names: dict[str, Any]) -> object:
    """Run a cell; the value of its last line, if that is an expression, as a notebook shows it."""
    tree = ast.parse(cell)
    last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
    exec(compile(tree, "cell", "exec"), names)
    return eval(compile(ast.Expression(last.value), "cell", "eval"), names) if last is not None else None


def test_the_notebook_runs_and_shows_a_summary_and_images() -> None:
    names: dict[str, Any] = {}
    shown = [run("".join(cell["source"]), names) for cell in NOTEBOOK["cells"] if cell["cell_type"] == "code"]
    (summary,) = [value for value in shown if isinstance(value, Summary)]
    assert summary.nfe == 14
    assert [image.size for image in shown if hasattr(image, "size") and not np.isscalar(image)] == [(256, 256)] * 2
    assert max(value for value in shown if isinstance(value, float)) > 35


def test_the_notebook_is_stored_without_outputs() -> None:
    assert not any(cell.get("outputs") for cell in NOTEBOOK["cells"])
    assert not any(cell.get("execution_count") for cell in NOTEBOOK["cells"])


def test_a_kernel_shows_the_summary_as_html() -> None:
    needs("nbclient", "nbformat", "ipykernel")
    import nbclient
    import nbformat

    notebook = nbformat.read(FILE, as_version=4)
    nbformat.validate(notebook)
    nbclient.NotebookClient(notebook, timeout=300, kernel_name="python3").execute()
    shown = [output.data for cell in notebook.cells for output in cell.get("outputs", []) if "data" in output]
    (html,) = [data["text/html"] for data in shown if "text/html" in data]
    assert html.count(": evaluated</title>") == 14
