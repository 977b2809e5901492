"""The CUDA kernels' machine code, compiled here by nvcc for GPUs that need not be here."""

from __future__ import annotations

import json
import subprocess

import pytest
from coalign.kernels.native import build, build_cuda, report
from typer.testing import CliRunner

from coalign.cli import app

needs_nvcc = pytest.mark.skipif(report.reason() is not None, reason=f"can't compile for GPUs: {report.reason()}")


@pytest.fixture(scope="module")
def compiled() -> list[report.Compiled]:
    """Every kernel for every architecture, from one library."""
    return list(report.compile_all(list(report.ARCHITECTURES.values())))


@needs_nvcc
@pytest.mark.parametrize("architecture", report.ARCHITECTURES.values(), ids=lambda a: a.name)
def test_machine_code(architecture, compiled):
    kernels = [c for c in compiled if c.architecture == architecture]
    with_tensor_cores = architecture.name != "sm_75"
    # two passes of three tiles each and three stream kernels, for each arithmetic that the GPU has a use for
    assert len(kernels) == 9 * (4 if with_tensor_cores else 3)
    assert {c.name: c.faults() for c in kernels if c.faults()} == {}
    assert {(c.name, c.arithmetic): c.spilled for c in kernels if c.spilled} == {}
    assert any(c.counts.matrix for c in kernels) == with_tensor_cores
    for c in kernels:
        assert 0 < c.registers <= 255
        assert 0 < c.occupancy <= 1
        assert c.fits or (c.name, architecture.name) == ("cuda tile_backward 64", "sm_75")


@needs_nvcc
def test_kernels_for_other_gpus_are_bare_traps(compiled):
    """Half precision without tensor cores is for old GPUs, tensor cores for new ones; none is compiled in vain."""
    assert {c.arithmetic for c in compiled if c.architecture.name == "sm_75"} == {"ieee", "ieee bf16", "ieee fp16"}
    assert {c.arithmetic for c in compiled if c.architecture.name == "sm_80"} == {"ieee", "tf32", "bf16", "fp16"}


@needs_nvcc
def test_spills_and_traps_are_seen(tmp_path):
    """Of a kernel that has both, or the reader would pass anything."""
    source = tmp_path / "kernel.cu"
    source.write_text(
        "__global__ void kernel(float* x, int i) {\n"
        "  float local[64];\n"
        "  for (int k = 0; k < 64; ++k) local[k] = x[k * i];\n"
        "  x[0] = local[i];\n"
        "  if (i == 7) __trap();\n"
        "}\n"
    )
    cubin = tmp_path / "kernel.cubin"
    subprocess.run([build_cuda.nvcc(), "-arch=sm_80", "-cubin", "-o", cubin, source], check=True)
    (code,) = report.disassembled(cubin, "sm_80").values()
    registers, stack, counts = code
    assert registers > 0
    assert stack >= 256
    assert counts.local > 0
    assert counts.traps == 1
    assert counts.matrix == 0


@needs_nvcc
def test_table_has_cuda_kernels(compiled):
    words = [word for name in report.ARCHITECTURES for word in ("--arch", name)]
    result = CliRunner().invoke(app, ["kernels", *words, "--only", "cuda tile_forward 16 tf32", "--json"])
    assert result.exit_code == 0, result.output
    rows = json.loads(result.stdout)
    assert [row["architecture"] for row in rows] == ["sm_80", "sm_86", "sm_90", "sm_100", "sm_120"]
    assert all(row["kernel"] == "cuda tile_forward 16" and row["matrix"] > 0 for row in rows)


def test_some_kernels_bear_the_names_that_are_asked_for():
    assert report.compiles("")
    assert report.compiles("cuda stream_deltas tf32")
    assert not report.compiles("tile_forward <=16 half")


def test_missing_nvcc_is_named(monkeypatch, tmp_path):
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    if build_cuda.shutil.which("/usr/local/cuda/bin/nvcc"):
        pytest.skip("nvcc is where it is always found")
    with pytest.raises(build.BuildError, match="nvcc was not found"):
        build_cuda.nvcc()
    assert "nvcc was not found" in str(report.reason())
