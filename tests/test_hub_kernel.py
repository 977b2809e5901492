"""The Triton backend as a kernel of the Hugging Face Hub: a folder that loads by itself, beside coalign."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# as kernel-builder writes it
OPS = """\
import torch
ops = torch.ops._coalign_0a1b2c3
def add_op_namespace_prefix(op_name: str):
    return f"_coalign_0a1b2c3::{op_name}"
"""

LOAD = """\
import importlib.util, sys, torch
import coalign as installed
spec = importlib.util.spec_from_file_location("loaded_from_the_hub", sys.argv[1])
kernel = importlib.util.module_from_spec(spec)
sys.modules[spec.name] = kernel
spec.loader.exec_module(kernel)
assert kernel.BACKENDS == ("triton", "reference")
torch.manual_seed(0)
leaves = [torch.randn(s).requires_grad_() for s in ((2, 7, 8), (2, 5, 8), (2, 7, 6), (2, 5, 4))]
lengths = torch.tensor([7, 3])
results = []
for module, backend in ((kernel, "triton"), (kernel, "reference"), (installed, "reference")):
    found = module.soft_align(*leaves, lengths_a=lengths, backend=backend)
    gradients = torch.autograd.grad(sum(t.square().sum() for t in found), leaves)
    results.append([*found, *gradients])
for other in results[1:]:
    for one, two in zip(results[0], other):
        torch.testing.assert_close(one, two, rtol=1e-5, atol=1e-5)
compiled = torch.compile(lambda *t: kernel.soft_align(*t).beta, fullgraph=True, backend="aot_eager")
torch.testing.assert_close(compiled(*leaves), kernel.soft_align(*leaves).beta)
assert "_coalign_0a1b2c3::soft_align" in str(torch.ops._coalign_0a1b2c3.soft_align.default._schema)
print("good")
"""


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    out = tmp_path_factory.mktemp("hub") / "kernel"
    subprocess.run([sys.executable, ROOT / "scripts/hub_kernel.py", out, "--repository", "me/kernel"], check=True)
    return out


def test_it_loads_from_its_folder(project):
    pytest.importorskip("triton", reason="Triton is not installed")
    package = project / "torch-ext/coalign"
    (package / "_ops.py").write_text(OPS)
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    command = [sys.executable, "-c", LOAD, package / "__init__.py"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=project)
    assert done.stdout == "good\n", done.stderr


def test_it_says_what_the_builder_must_know(project):
    tomllib = pytest.importorskip("tomllib", reason="Python 3.10 reads no TOML")
    told = tomllib.loads((project / "build.toml").read_text())
    assert told["general"]["name"] == "coalign"
    assert told["general"]["hub"]["repo-id"] == "me/kernel"
    kinds = {file.suffix for file in (project / "torch-ext/coalign").rglob("*") if file.is_file()}
    assert kinds <= {f".{kind}" for kind in told["torch-noarch"]["pyext"]}


def test_it_imports_nothing_but_what_kernels_may(project):
    """The standard library, torch, triton, and itself."""
    allowed = {*sys.stdlib_module_names, "torch", "triton"}
    for file in (project / "torch-ext").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Import):
                assert {alias.name.split(".")[0] for alias in node.names} <= allowed, file
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                assert str(node.module).split(".")[0] in allowed, file


def test_nothing_is_overwritten(project):
    done = subprocess.run([sys.executable, ROOT / "scripts/hub_kernel.py", project], capture_output=True, text=True)
    assert done.returncode != 0
    assert "is not empty" in done.stderr
