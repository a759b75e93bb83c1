"""What the README shows runs as it is written."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def blocks() -> list[str]:
    return re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)


def test_the_lightning_script_is_ten_lines_and_proves_its_pairs(tmp_path: Path) -> None:
    script = blocks()[0]
    assert len([line for line in script.splitlines() if line.strip()]) <= 10
    (tmp_path / "script.py").write_text(
        script + "\nassert float(spectrum.relative_residuals.max()) <= 1e-3\n"
    )
    done = subprocess.run(
        [sys.executable, "script.py"], cwd=tmp_path, capture_output=True, text=True, timeout=200
    )
    assert done.returncode == 0, done.stderr
    assert "residual/λmax" in done.stdout


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_the_bare_loop_gives_the_pairs_of_the_lightning_script() -> None:
    import eigenexp as ee

    names: dict[str, object] = {"ee": ee}
    names["picture"] = ee.load_picture("camera", crop=[120, 220, 32, 32])
    exec(blocks()[1], names)
    spectrum = names["spectrum"]
    assert isinstance(spectrum, ee.Spectrum)
    assert float(spectrum.relative_residuals.max()) <= 1e-3


@pytest.mark.parametrize("target", sorted(set(re.findall(r"\]\(([\w./-]+)\)", README))))
def test_every_link_leads_somewhere(target: str) -> None:
    assert (ROOT / target).exists()


def test_every_make_target_named_exists() -> None:
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"^make (\w+)", README, flags=re.MULTILINE):
        assert re.search(rf"^{target}:", makefile, flags=re.MULTILINE)
