"""Private names of other libraries: these, each told why where it is used, and no others."""

from __future__ import annotations

import ast
from collections import Counter, defaultdict
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "eigenexp"
OPERATORS = "eigenexp/operators"

MODULES = {
    ("torch.utils._python_dispatch", f"{OPERATORS}/precision.py"),
    ("torch.utils._python_dispatch", f"{OPERATORS}/tape.py"),
    ("hydra._internal.callbacks", "eigenexp/sweeps/launchers.py"),
}
NAMES = {
    ("_orig_mod", f"{OPERATORS}/calling.py"),
    ("_C", f"{OPERATORS}/blocks.py"),
    ("_functorch", f"{OPERATORS}/blocks.py"),
    ("_is_vmap_fallback_enabled", f"{OPERATORS}/blocks.py"),
    ("_set_vmap_fallback_enabled", f"{OPERATORS}/blocks.py"),
    ("_cdata", f"{OPERATORS}/tape.py"),
    ("_schema", f"{OPERATORS}/tape.py"),
    ("_prefix", "eigenexp/callbacks/sending.py"),
    # Operations of ATen are called so.
    ("_local_scalar_dense", f"{OPERATORS}/tape.py"),
    ("_unsafe_view", f"{OPERATORS}/folding.py"),
}
ONLY_DEFINED = {
    ("_should_skip_dynamo", f"{OPERATORS}/tape.py"),
    # Of plenoptic's class.
    ("_image_flat", "eigenexp/compat/synthesis.py"),
    ("_representation_flat", "eigenexp/compat/synthesis.py"),
}
"""Functions that this package never calls: others do, or nobody."""


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__") and name != "_"


class Names(ast.NodeVisitor):
    """The private names of all files: those defined, those read, those imported from elsewhere."""

    def __init__(self) -> None:
        self.defined: set[str] = set()
        self.functions: set[tuple[str, str]] = set()
        self.read: dict[str, set[str]] = defaultdict(set)
        self.counts: Counter[str] = Counter()
        self.modules: set[tuple[str, str]] = set()
        self.path = ""

    def _read(self, name: str) -> None:
        self.counts[name] += 1
        if is_private(name):
            self.read[name].add(self.path)

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        self.defined.add(node.name)
        bare = all(isinstance(one, ast.Name) for one in node.decorator_list)
        if is_private(node.name) and bare:  # others are told to whatever decorates them
            self.functions.add((node.name, self.path))
        self.generic_visit(node)

    def visit_ClassDef(self, node: ast.ClassDef) -> None:
        self.defined.add(node.name)
        self.generic_visit(node)

    def visit_Attribute(self, node: ast.Attribute) -> None:
        (self.defined.add if isinstance(node.ctx, ast.Store) else self._read)(node.attr)
        self.generic_visit(node)

    def visit_Name(self, node: ast.Name) -> None:
        (self.defined.add if isinstance(node.ctx, ast.Store) else self._read)(node.id)

    def visit_Call(self, node: ast.Call) -> None:
        if isinstance(node.func, ast.Name) and node.func.id in ("getattr", "setattr", "hasattr"):
            name = node.args[1]
            if isinstance(name, ast.Constant):
                self._read(str(name.value))
        self.generic_visit(node)

    def visit_Import(self, node: ast.Import) -> None:
        self._import([alias.name for alias in node.names])

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        module = str(node.module)
        self.defined |= {alias.asname for alias in node.names if alias.asname}
        if module.split(".")[0] not in ("eigenexp", "__future__"):
            private = [alias.name for alias in node.names if is_private(alias.name)]
            self._import([f"{module}.{name}" for name in private] or [module])

    def _import(self, names: list[str]) -> None:
        for name in names:
            if any(is_private(part) for part in name.split(".")):
                self.modules.add((name, self.path))


def test_private_names_of_other_libraries_are_the_known_ones() -> None:
    names = Names()
    for path in sorted(PACKAGE.rglob("*.py")):
        names.path = path.relative_to(ROOT).as_posix()
        names.visit(ast.parse(path.read_text(encoding="utf-8")))
    foreign = {
        (name, path)
        for name, paths in names.read.items()
        if name not in names.defined
        for path in paths
    }
    assert names.modules == MODULES
    assert foreign == NAMES
    assert {
        (name, path) for name, path in names.functions if not names.counts[name]
    } == ONLY_DEFINED
