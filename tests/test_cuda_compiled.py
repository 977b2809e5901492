"""The CUDA kernels through nvcc, for GPUs that need not be here; and the extension built and loaded without one."""

import os
import shutil
import subprocess
import sys

import pytest
from coalign.kernels.native import build, build_cuda
from coalign.kernels.native.report import ARCHITECTURES, Case, cases, compile_case


def chosen(case, name):
    """Most kernels for sm_90, where the others do not differ; for other GPUs what takes most registers and memory."""
    if name == "sm_90":
        return case.arithmetic == "half" or case.tile >= 64
    greedy = (("tile_backward", "half"), ("stream_backward", "tf32"), ("frozen_sums", "half"), ("frozen_sums", "tf32"))
    return case.tile == 64 and case[0::2] in greedy


CHOSEN = [
    pytest.param(case, architecture, id=f"{name}-{case.arithmetic}-{case.name}")
    for name, architecture in ARCHITECTURES.items()
    for case in cases(architecture)
    if chosen(case, name) or (name == "sm_75" and case.tile == 64 and case.kernel.endswith("forward"))
]


@pytest.mark.nvcc
@pytest.mark.parametrize(("case", "architecture"), CHOSEN)
def test_machine_code(case, architecture):
    compiled = compile_case(case, architecture)
    assert compiled.faults() == []
    assert compiled.spilled == 0
    assert 0 < compiled.shared <= architecture.shared
    assert 0 < compiled.occupancy <= 1
    assert (compiled.matrix > 0) == (architecture.tensor_cores and case.arithmetic != "ieee")


class Starved(Case):
    """A kernel that may have 40 registers a thread."""

    def source(self, tensor_cores):
        limit = "#include <cuda_runtime.h>\n#undef __launch_bounds__\n#define __launch_bounds__(...) __maxnreg__(40)\n"
        return limit + super().source(tensor_cores)


@pytest.mark.nvcc
def test_spills_are_seen():
    """40 registers can't hold a 64 x 64 tile: the report must say so, or it would pass anything."""
    assert compile_case(Starved("tile_backward", 64, "half"), ARCHITECTURES["sm_80"]).spilled > 100


LOAD = """
import torch
from coalign.kernels.native import build, build_cuda
torch.ops.load_library(str(build.build(build_cuda.SOURCES, tools=build_cuda.tools(["90"]))))
print(torch.ops.coalign_cuda.forward, torch.ops.coalign_cuda.backward, torch.ops.coalign_cuda.frozen_sums)
"""


@pytest.mark.nvcc
def test_extension_builds_and_loads_without_a_gpu():
    """In a process of its own: the simulator's library has operators of the same names."""
    ran = subprocess.run([sys.executable, "-c", LOAD], capture_output=True, text=True, env={**os.environ, "CXX": ""})
    assert ran.stdout.split() == [f"coalign_cuda.{op}" for op in ("forward", "backward", "frozen_sums")], ran.stderr


def test_no_nvcc(monkeypatch):
    monkeypatch.delenv("CUDA_HOME", raising=False)
    monkeypatch.setattr(shutil, "which", lambda *_: None)
    with pytest.raises(build.BuildError, match=r"nvcc was not found .*CUDA_HOME"):
        build_cuda.tools(["80"])


def test_cuda_home_is_where_nvcc_is(monkeypatch, tmp_path):
    (tmp_path / "bin").mkdir()
    nvcc = tmp_path / "bin/nvcc"
    nvcc.write_text("#!/bin/sh\n")
    nvcc.chmod(0o755)
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    assert build_cuda.tools(["80", "90a"]).compiler == (str(nvcc),)
    assert "-gencode=arch=compute_90a,code=sm_90a" in build_cuda.tools(["80", "90a"]).flags
