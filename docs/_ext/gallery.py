"""Tutorials: the notebooks of ``notebooks/`` as pages, and a card with a picture for each."""

from __future__ import annotations

import base64
import json
import re
import shutil
from pathlib import Path
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.config import Config
from sphinx.util.docutils import SphinxDirective

ROOT = Path(__file__).parents[2]
NOTEBOOKS = ROOT / "notebooks"


def first_picture(notebook: dict[str, Any]) -> bytes | None:
    """Return the first PNG among the stored outputs."""
    for cell in notebook["cells"]:
        for output in cell.get("outputs", []):
            data = output.get("data", {}).get("image/png")
            if data:
                return base64.b64decode("".join(data))
    return None


def heading_and_summary(notebook: dict[str, Any]) -> tuple[str, str]:
    """Return a notebook's title and the first sentence below it."""
    text = "".join(notebook["cells"][0]["source"])
    title, _, rest = text.partition("\n")
    paragraph = " ".join(rest.strip().split("\n\n")[0].split())
    sentence = re.match(r".*?[.:?](?=\s|$)", paragraph)
    return title.lstrip("# ").strip(), sentence.group().rstrip(":") if sentence else paragraph


def copy_notebooks(app: Sphinx, _: Config) -> None:
    """Lay the notebooks beside the pages, each only when it changed: the cache looks at them."""
    pages, pictures = Path(app.srcdir) / "tutorials", Path(app.srcdir) / "_static" / "tutorials"
    pictures.mkdir(parents=True, exist_ok=True)
    for path in NOTEBOOKS.glob("*.ipynb"):
        page = pages / path.name
        if not page.exists() or page.read_bytes() != path.read_bytes():
            shutil.copyfile(path, page)
        picture = first_picture(json.loads(path.read_text()))
        if picture:
            (pictures / f"{path.stem}.png").write_bytes(picture)
    for page in pages.glob("*.ipynb"):
        if not (NOTEBOOKS / page.name).exists():
            page.unlink()


class Gallery(SphinxDirective):
    """Cards of the notebooks named in its lines, in that order, and their place in the contents."""

    has_content = True

    def run(self) -> list[nodes.Node]:
        """Make the grid by sphinx-design's own directives."""
        names = [line.strip() for line in self.content if line.strip()]
        lines = ["::::{grid} 1 2 2 3", ":gutter: 3", ""]
        for name in names:
            path = NOTEBOOKS / f"{name}.ipynb"
            self.env.note_dependency(str(path))
            title, summary = heading_and_summary(json.loads(path.read_text()))
            lines += [f":::{{grid-item-card}} {title}", f":link: {name}", ":link-type: doc"]
            if (Path(self.env.srcdir) / "_static" / "tutorials" / f"{name}.png").exists():
                lines += [f":img-top: /_static/tutorials/{name}.png", f":img-alt: {title}"]
            lines += ["", summary, ":::", ""]
        lines += ["::::", "", "```{toctree}", ":hidden:", "", *names, "```"]
        return self.parse_text_to_nodes("\n".join(lines))


def setup(app: Sphinx) -> dict[str, bool]:
    """Tell Sphinx what is here."""
    app.connect("config-inited", copy_notebooks)
    app.add_directive("gallery", Gallery)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
