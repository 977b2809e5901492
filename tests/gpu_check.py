"""`make gpu-check`: everything about the GPU that needs one, on a machine that has one, and a summary.

Builds the CUDA extension, runs the tests marked `gpu`, then small calls under compute-sanitizer, where that is
installed. Exit status 0: all passed; 1: something failed; 2: there is no GPU.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from pathlib import Path

import torch

import coalign
from coalign.testing import Case, assert_accurate, run

TESTS = Path(__file__).parent
TOOLS = ("memcheck", "racecheck", "initcheck")
SMALL = [
    Case("tile", 20, 13, h=40, d_a=36, d_b=20, tokens_a=(20, 3), tokens_b=(13, 0), extent_a="lengths", extent_b="mask"),
    Case("packed", 40, 17, tokens_a=(40, 3), tokens_b=(2, 17), extent_a="packed", extent_b="packed"),
    Case("stream", 70, 130, h=20, d_a=24, d_b=9, tokens_a=(70, 66), extent_a="lengths", bias="full"),
]


def small_calls() -> None:
    """Forward and backward of the native kernels, each case in each dtype, against the oracle."""
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        for case in SMALL:
            operands = case.but(dtype=dtype).operands("cuda")
            assert_accurate(run(operands, "native"), operands)


def build() -> None:
    """Build and load the extension; or say why not."""
    from coalign.kernels.native import build_cuda

    if reason := build_cuda.extension.reason():
        sys.exit(reason)


def main() -> int:
    if not torch.cuda.is_available():
        print("gpu-check: PyTorch sees no GPU here")
        return 2
    own = (sys.executable, __file__)
    steps = {
        "build the CUDA extension": (*own, "build"),
        "small calls": (*own, "small"),
        "tests marked gpu": (sys.executable, "-m", "pytest", "-q", "-rs", "-m", "gpu", str(TESTS)),
    }
    for tool in TOOLS:
        command = ("compute-sanitizer", f"--tool={tool}", "--error-exitcode=1", *own, "small")
        steps[f"small calls under {tool}"] = command if shutil.which(command[0]) else ()
    results = []
    for name, command in steps.items():
        print(f"\n== {name}", flush=True)
        start = time.perf_counter()
        status = subprocess.run(command, cwd=TESTS.parent, check=False).returncode if command else None
        verdict = "left out: compute-sanitizer is not installed" if status is None else "failed" if status else "passed"
        results.append((name, verdict, time.perf_counter() - start))
    p = torch.cuda.get_device_properties(0)
    print(f"\ngpu-check of coalign {coalign.__version__}, torch {torch.__version__}, {p.name} ({p.major}.{p.minor})")
    for name, verdict, seconds in results:
        print(f"  {name:<32} {verdict} ({seconds:.0f} s)")
    return int(any(verdict == "failed" for _, verdict, _ in results))


if __name__ == "__main__":
    sys.exit({"build": build, "small": small_calls}.get("".join(sys.argv[1:]), main)())
