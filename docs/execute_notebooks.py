"""Run notebooks and keep what they show, small: ``python docs/execute_notebooks.py [NAME ...]``.

Warnings on standard error, execution times and widgets are not kept; they differ from machine to
machine. A notebook that fails stays as it was.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import nbformat
from nbclient import NotebookClient

NOTEBOOKS = Path(__file__).parents[1] / "notebooks"


def execute(path: Path, seconds: int) -> None:
    """Run one notebook in its own folder, and write it back with its outputs."""
    notebook = nbformat.read(path, as_version=4)
    NotebookClient(
        notebook, timeout=seconds, resources={"metadata": {"path": str(path.parent)}}
    ).execute()
    for number, cell in enumerate((c for c in notebook.cells if c.cell_type == "code"), start=1):
        cell.metadata.pop("execution", None)
        cell.execution_count = number
        cell.outputs = [out for out in cell.outputs if out.get("name") != "stderr"]
        for output in cell.outputs:
            if "execution_count" in output:
                output.execution_count = number
    notebook.metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    nbformat.write(notebook, path)


def main() -> None:
    """Run those named, or all."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help="notebooks by name; all where none is given")
    parser.add_argument("--seconds", type=int, default=600, help="the longest a cell may take")
    options = parser.parse_args()
    for path in sorted(NOTEBOOKS.glob("*.ipynb")):
        if not options.names or path.stem in options.names:
            print(path.name, flush=True)
            execute(path, options.seconds)


if __name__ == "__main__":
    main()
