"""A wheel, installed by itself, runs outside the repository with its configuration inside."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.slow
def test_a_wheel_in_an_empty_environment_runs_fit(tmp_path: Path) -> None:
    subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--outdir", str(tmp_path), str(ROOT)],
        check=True,
        capture_output=True,
        timeout=300,
    )
    (wheel,) = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    for name in ("eigenexp/conf/fit.yaml", "eigenexp/conf/model/onoff.yaml", "eigenexp/py.typed"):
        assert name in names
    for path in [*(ROOT / "eigenexp").rglob("*.py"), *(ROOT / "conf").rglob("*.yaml")]:
        place = path.relative_to(ROOT).as_posix()
        assert (f"eigenexp/{place}" if place.startswith("conf/") else place) in names
    assert not [name for name in names if name.startswith(("tests/", "conf/"))]
    clean = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "EIGENEXP_ROOT")}
    environment = tmp_path / "env"
    subprocess.run([sys.executable, "-m", "venv", str(environment)], check=True, timeout=120)
    python = environment / "bin" / "python"
    install = [str(python), "-m", "pip", "install", "--quiet", str(wheel)]
    install += ["-c", str(ROOT / "constraints.txt")]
    subprocess.run(install, check=True, capture_output=True, timeout=900, env=clean)
    outside = tmp_path / "outside"
    outside.mkdir()
    done = subprocess.run(
        [str(environment / "bin" / "eigenexp"), "fit", "image.crop=[120,220,20,20]", "threads=1"],
        cwd=outside,
        env=clean,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "residual/λmax" in done.stdout
    assert list((outside / "mlruns" / "results").glob("*/distortions.png"))


def test_import_is_light() -> None:
    code = (
        "import sys, eigenexp; "
        "print([m for m in ('torch', 'mlflow', 'lightning', 'hydra', 'matplotlib') "
        "if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_every_public_name_loads() -> None:
    import eigenexp

    for name in eigenexp.__all__:
        assert getattr(eigenexp, name) is not None
