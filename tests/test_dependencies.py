"""What is imported is declared, what is declared is imported, and the lower bounds are tested."""

from __future__ import annotations

import ast
import sys
import tomllib
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
REQUIRED = {canonicalize_name(Requirement(r).name): Requirement(r) for r in PROJECT["dependencies"]}
OPTIONAL = {
    canonicalize_name(Requirement(line).name)
    for extra, lines in PROJECT["optional-dependencies"].items()
    if extra != "test"
    for line in lines
}
NAMES = {
    "mlflow": "mlflow",
    "yaml": "pyyaml",
    "skimage": "scikit-image",
    "PIL": "pillow",
    "hydra": "hydra-core",
    "psychopy": "psychopy-lib",
}
"""Distributions of modules that others install a part of too, or that may be missing here."""
INSTALLED = metadata.packages_distributions()


def distribution(module: str) -> str:
    """Return the distribution that a top-level module comes from."""
    known = INSTALLED.get(module, [])
    return canonicalize_name(NAMES.get(module) or (known[0] if known else module))


def imports(path: Path) -> Iterator[tuple[str, bool]]:
    """Yield a file's third-party top-level modules, and whether importing the file needs each."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    at_once = {
        node
        for statement in tree.body
        if not isinstance(statement, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.If))
        for node in ast.walk(statement)
    }
    for node in ast.walk(tree):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom) and node.level == 0:
            names = [str(node.module)]
        for name in names:
            top = name.split(".")[0]
            if top not in sys.stdlib_module_names and top != "eigenexp":
                yield top, node in at_once


IMPORTS = {
    (path.relative_to(ROOT).as_posix(), module, at_once)
    for path in sorted((ROOT / "eigenexp").rglob("*.py"))
    for module, at_once in imports(path)
}


def test_what_is_imported_is_declared() -> None:
    undeclared = {
        f"{module} in {where}"
        for where, module, _ in IMPORTS
        if distribution(module) not in REQUIRED.keys() | OPTIONAL
    }
    assert not undeclared


def test_optional_packages_are_imported_where_they_are_used_alone() -> None:
    at_once = {
        f"{module} in {where}"
        for where, module, needed in IMPORTS
        if needed and distribution(module) not in REQUIRED
    }
    assert not at_once


def test_what_is_declared_is_imported() -> None:
    assert REQUIRED.keys() <= {distribution(module) for _, module, _ in IMPORTS}


def pins(name: str) -> dict[str, Version]:
    lines = (ROOT / name).read_text().splitlines()
    pairs = [line.split("==") for line in lines if line and not line.startswith("#")]
    return {canonicalize_name(package): Version(version) for package, version in pairs}


def test_the_lowest_versions_are_the_declared_ones() -> None:
    """All but torch, whose older CPU builds are not to be had everywhere."""
    lowest = pins("constraints-lowest.txt")
    for name, requirement in REQUIRED.items():
        (bound,) = [s.version for s in requirement.specifier if s.operator == ">="]
        if name != "torch":
            assert lowest[name] == Version(bound), name


@pytest.mark.parametrize("name", ["constraints.txt", "constraints-lowest.txt"])
def test_constraints_are_within_the_declared_bounds(name: str) -> None:
    pinned = pins(name)
    for package, requirement in REQUIRED.items():
        assert requirement.specifier.contains(pinned[package]), package


def test_the_version_stands_in_one_place() -> None:
    import eigenexp

    assert "version" not in PROJECT
    assert metadata.version("eigenexp") == eigenexp.__version__
    assert f"## [{eigenexp.__version__}]" in (ROOT / "CHANGELOG.md").read_text()
