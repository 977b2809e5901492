"""What is shipped: the package list, wheel and sdist, the wheel installed on its own."""

from __future__ import annotations

import importlib.resources
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[1]
SETUPTOOLS = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
FOLDERS: dict[str, str] = SETUPTOOLS["package-dir"]  # package -> folder
LEFTOVERS = shutil.ignore_patterns(
    ".git", ".venv*", "build", "dist", "*.egg-info", "__pycache__", ".*_cache", ".hypothesis"
)


def run(*command: object, cwd: Path, path: Path | None = None) -> str:
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | (
        {"PYTHONPATH": str(path)} if path else {}
    )
    ran = subprocess.run([*map(str, command)], cwd=cwd, env=environment, capture_output=True, text=True, timeout=300)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return ran.stdout


def build(tree: Path, kind: str) -> Path:
    """The wheel or sdist of a tree, built offline with the tools that are installed."""
    run(sys.executable, "-m", "build", f"--{kind}", "--no-isolation", "--skip-dependency-check", cwd=tree)
    (built,) = (tree / "dist").glob("*.whl" if kind == "wheel" else "*.tar.gz")
    return built


def contents(wheel: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(wheel) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def files(folder: str) -> set[str]:
    """The files of a folder of the project, as paths from it."""
    found = (p.relative_to(ROOT / folder).as_posix() for p in (ROOT / folder).rglob("*") if p.is_file())
    return {p for p in found if "__pycache__" not in p and ".egg-info" not in p}


@pytest.fixture(scope="module")
def sdist(tmp_path_factory) -> Path:
    """The sdist, unpacked; built in a copy of the project, which building would litter."""
    tree = tmp_path_factory.mktemp("project") / "coalign"
    shutil.copytree(ROOT, tree, ignore=LEFTOVERS)
    unpacked = tmp_path_factory.mktemp("sdist")
    with tarfile.open(build(tree, "sdist")) as archive:
        archive.extractall(unpacked)
    (folder,) = unpacked.iterdir()
    return folder


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    tree = tmp_path_factory.mktemp("project") / "coalign"
    shutil.copytree(ROOT, tree, ignore=LEFTOVERS)
    return build(tree, "wheel")


def test_every_package_is_listed():
    found = set()
    for package, folder in FOLDERS.items():
        for init in (ROOT / folder).rglob("__init__.py"):
            found.add(".".join([package, *init.parent.relative_to(ROOT / folder).parts]))
    assert sorted(SETUPTOOLS["packages"]) == sorted(found)


def test_no_module_lies_outside_a_package():
    for folder in FOLDERS.values():
        for module in (ROOT / folder).rglob("*.py"):
            assert (module.parent / "__init__.py").exists(), f"{module} is in no package, so it would not be shipped"


def test_wheel_holds_the_packages_and_nothing_else(wheel):
    names = set(contents(wheel))
    metadata = {name for name in names if name.split("/")[0].endswith(".dist-info")}
    assert any(name.endswith("licenses/LICENSE") for name in metadata)
    expected = set()
    for package, folder in FOLDERS.items():
        expected |= {f"{package.replace('.', '/')}/{name}" for name in files(folder)}
    assert names - metadata == expected
    assert {"coalign/py.typed", "coalign/csrc/__init__.py", "coalign/kernels/api.py"} <= names


def test_sdist_holds_what_is_needed_to_test_it(sdist):
    for folder in ("tests", "benchmarks", *FOLDERS.values()):
        for name in files(folder):
            assert (sdist / folder / name).is_file(), f"{folder}/{name} is not in the sdist"
    for name in ("Makefile", "constraints.txt", "CONTRIBUTING.md", "README.md", "LICENSE", "pyproject.toml"):
        assert (sdist / name).is_file(), f"{name} is not in the sdist"


def test_sdist_builds_the_same_wheel(sdist, wheel):
    direct, rebuilt = contents(wheel), contents(build(sdist, "wheel"))
    assert direct.keys() == rebuilt.keys()
    assert [name for name in direct if direct[name] != rebuilt[name]] == []


def test_wheel_works_on_its_own(wheel, tmp_path):
    """Installed in an empty folder, everything comes from there, sources to compile included."""
    run(
        sys.executable,
        "-m",
        "pip",
        "install",
        "--no-deps",
        "--no-index",
        "--target",
        tmp_path / "site",
        wheel,
        cwd=tmp_path,
    )
    code = """
import importlib.resources, torch, coalign, coalign.kernels, coalign.model, coalign.testing
operands = coalign.testing.Case("any", 3, 2).operands()
coalign.testing.assert_accurate(coalign.testing.run(operands, "reference"), operands)
assert importlib.resources.files("coalign.csrc").joinpath("__init__.py").is_file()
for package in (coalign, coalign.kernels, coalign.model, coalign.testing):
    print(package.__file__)
"""
    places = run(sys.executable, "-c", code, cwd=tmp_path, path=tmp_path / "site").split()
    assert len(places) == 4
    assert all(Path(place).is_relative_to(tmp_path / "site") for place in places)


def test_sources_are_found_where_it_is_installed_now():
    assert importlib.resources.files("coalign.csrc").joinpath("__init__.py").is_file()


def test_plain_kernels_can_not_be_imported():
    """In the project's root `import kernels` finds the folder: it must say what to import instead."""
    ran = subprocess.run([sys.executable, "-c", "import kernels"], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert ran.returncode != 0
    assert "imported as 'kernels'; import it as coalign.kernels" in ran.stderr
