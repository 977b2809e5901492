"""The project's own rules: where imports point, how long files are, what the README must list."""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import coalign

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[1]
FOLDERS: dict[str, str] = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-dir"]
MOST_LINES = 400

# What each package may import of coalign: data flows one way, and so do imports. Of a package, its own modules too.
MAY_IMPORT = {
    "coalign": {"coalign.kernels", "coalign.model", "coalign.csrc"},
    "coalign.model": {"coalign.kernels"},
    "coalign.kernels": {"coalign.csrc"},
    "coalign.csrc": set(),
}


def modules() -> Iterator[tuple[str, Path]]:
    """Every module of the installed packages, by name, and its file."""
    for package, folder in FOLDERS.items():
        for path in sorted((ROOT / folder).rglob("*.py")):
            parts = path.relative_to(ROOT / folder).with_suffix("").parts
            yield ".".join([package, *(p for p in parts if p != "__init__")]), path


def imports(module: str, path: Path) -> Iterator[str]:
    """What a module imports, absolute: for `from x import y` both x and x.y, for y may be a module."""
    package = module.split(".") if path.name == "__init__.py" else module.split(".")[:-1]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            start = package[: len(package) - node.level + 1] if node.level else []
            source = ".".join([*start, *([node.module] if node.module else [])])
            if source != "coalign":  # `from .. import kernels` is an import of kernels, not of the face
                yield source
            yield from (f"{source}.{alias.name}" for alias in node.names)


def owner(name: str) -> str | None:
    """The package of MAY_IMPORT to which a module belongs."""
    packages = sorted(MAY_IMPORT, key=len, reverse=True)
    return next((p for p in packages if name == p or name.startswith(p + ".")), None)


@pytest.mark.parametrize(("module", "path"), list(modules()), ids=lambda value: value if isinstance(value, str) else "")
def test_imports_point_one_way(module, path):
    here = owner(module)
    for imported in imports(module, path):
        there = owner(imported)
        if there is not None and there != here:
            assert there in MAY_IMPORT[here], f"{module} imports {imported}"


def test_backends_never_import_one_another():
    backends = {f"coalign.kernels.{name}" for name in coalign.BACKENDS}
    seen = set()
    for module, path in modules():
        own = next((b for b in backends if module == b or module.startswith(b + ".")), None)
        if own is None:
            continue
        seen.add(own)
        for imported in imports(module, path):
            for other in backends - {own}:
                assert imported != other, f"{module} imports {imported}"
                assert not imported.startswith(other + "."), f"{module} imports {imported}"
    assert seen == backends


def test_relative_imports_are_understood(tmp_path):
    """The reader of imports above, on imports that it must not miss."""
    path = tmp_path / "x.py"
    path.write_text("from .. import model\nfrom ..model.nli import read\nimport coalign.cli\nfrom . import reference\n")
    assert list(imports("coalign.kernels.x", path)) == [
        "coalign.model",
        "coalign.model.nli",
        "coalign.model.nli.read",
        "coalign.cli",
        "coalign.kernels",
        "coalign.kernels.reference",
    ]
    assert [owner(name) for name in ("coalign.kernels.x", "coalign.cli", "torch")] == [
        "coalign.kernels",
        "coalign",
        None,
    ]


def sources() -> list[Path]:
    folders = (*FOLDERS.values(), "tests", "benchmarks")
    return [p for f in folders for p in (ROOT / f).rglob("*") if p.suffix in {".py", ".cpp", ".cu", ".h", ".cuh"}]


def test_no_file_is_too_long():
    lengths = {str(p.relative_to(ROOT)): len(p.read_text().splitlines()) for p in sources()}
    assert len(lengths) > 20
    assert {name: lines for name, lines in lengths.items() if lines > MOST_LINES} == {}


def test_readme_lists_every_environment_variable():
    used = {name for p in sources() for name in re.findall(r"\bCOALIGN_[A-Z][A-Z_]*\b", p.read_text())}
    assert "COALIGN_BACKEND" in used
    readme = (ROOT / "README.md").read_text()
    assert sorted(name for name in used if name not in readme) == []
