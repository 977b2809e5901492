"""`make gpu-check`: everything about the GPU that needs one, on a machine that has one, and a summary.

Builds the CUDA extension, runs the tests marked `gpu`, then small calls under compute-sanitizer, where that is
installed. Exit status 0: all passed; 1: something failed; 2: there is no GPU.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import torch
from coalign.kernels.native import cuda_frozen

import coalign
from coalign import DecomposableAttention, PairBatch
from coalign.testing import Case, assert_accurate, run

TESTS = Path(__file__).parent
TOOLS = {  # and their options: copies to the host read what PyTorch's kernels wrote, which nobody watches
    "memcheck": (),
    "racecheck": (),
    "initcheck": ("--check-api-memory-access", "no"),
}
# Of coalign's kernels alone: PyTorch's are many, and not ours to mend. Without the caching allocator every tensor is an
# allocation of its own, so that memcheck sees a read past its end.
WATCH = ("compute-sanitizer", "--kernel-name", "kns=coalign", "--error-exitcode", "1")
UNCACHED = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
SMALL = [
    Case("tile of 16", 16, 9, h=13, d_a=9, d_b=3, tokens_a=(16, 3), extent_a="lengths"),
    Case("tile of 32", 20, 13, h=40, d_a=36, d_b=20, tokens_a=(20, 3), tokens_b=(13, 0)).but(
        extent_a="lengths", extent_b="mask"
    ),
    Case("tile of 64", 33, 50, h=200, d_a=100, d_b=100, batch=(1,)),
    Case("packed", 40, 17, tokens_a=(40, 3), tokens_b=(2, 17), extent_a="packed", extent_b="packed"),
    Case("packed stream", 90, 70, tokens_a=(90, 3), tokens_b=(2, 70), extent_a="packed", extent_b="packed"),
    Case("stream", 70, 130, h=20, d_a=24, d_b=9, tokens_a=(70, 66), extent_a="lengths", bias="full"),
]


FROZEN = (7, 1, 0, 12, 30, 40), (2, 1, 3, 4, 24, 50)  # lengths: pairs together in a tile, and one too long for that


def small_calls() -> None:
    """Forward and backward of the native kernels, each case in each dtype and in TF32, against the oracle; and a
    frozen model's kernel against plain PyTorch.

    Operands arrive by copy, and only coalign's kernels write what its kernels read: initcheck sees every write.
    """
    for precision, dtype, bound in (
        ("highest", torch.float32, None),
        ("high", torch.float32, 4e-3),
        ("highest", torch.bfloat16, None),
        ("highest", torch.float16, None),
    ):
        torch.set_float32_matmul_precision(precision)
        for case in SMALL:
            operands = case.but(dtype=dtype).operands("cuda")
            assert_accurate(run(operands, "native"), operands, bound)
        if dtype != torch.float16:
            frozen_scores(dtype, bound)


def frozen_scores(dtype: torch.dtype, bound: float | None) -> None:
    """Of a model with d2l's hidden layer; the longest pair is left out where a block has too little memory for it."""
    torch.manual_seed(0)
    model = DecomposableAttention.from_sizes(60, 100, 200).eval()
    made = model.freeze(dtype).cuda()
    draw = torch.Generator().manual_seed(0)
    sides = [[torch.randint(60, (n,), generator=draw).tolist() for n in lengths] for lengths in FROZEN]
    count = 6 if not cuda_frozen.unsupported(made.table, 90) else 5
    batch = PairBatch.from_lists(*(side[:count] for side in sides))
    made.backend = "native"
    found, expected = made(batch.to("cuda")).cpu(), model(batch).detach()
    error = float((found - expected).norm() / expected.norm())
    allowed = 0.05 if dtype == torch.bfloat16 else bound or 1e-5
    assert error <= allowed, f"a frozen model's scores are off by {error:.1e}, {dtype}"


def build() -> None:
    """Build and load the extension; or say why not."""
    from coalign.kernels.native import build_cuda

    if reason := build_cuda.extension.reason():
        sys.exit(reason)


def workers() -> tuple[str, ...]:
    """Several at once, where pytest can: compiling kernels for each case takes seconds on one core (on 16: minutes)."""
    count = (os.cpu_count() or 1) - 2
    return ("--numprocesses", str(count)) if count > 1 and importlib.util.find_spec("xdist") else ()


def main() -> int:
    if not torch.cuda.is_available():
        print("gpu-check: PyTorch sees no GPU here")
        return 2
    own = (sys.executable, __file__)
    steps = {
        "build the CUDA extension": (*own, "build"),
        "small calls": (*own, "small"),
        "tests marked gpu": (sys.executable, "-m", "pytest", "-q", "-rs", "-m", "gpu", *workers(), str(TESTS)),
    }
    for tool, options in TOOLS.items():
        watched = (*WATCH, "--tool", tool, *options, *own, "small")
        steps[f"small calls under {tool}"] = watched if shutil.which(WATCH[0]) else ()
    results = []
    for name, command in steps.items():
        print(f"\n== {name}", flush=True)
        start = time.perf_counter()
        environment = os.environ | (UNCACHED if command[:1] == WATCH[:1] else {})
        ran = subprocess.run(command, cwd=TESTS.parent, env=environment, check=False) if command else None
        status = None if ran is None else ran.returncode
        verdict = "left out: compute-sanitizer is not installed" if status is None else "failed" if status else "passed"
        results.append((name, verdict, time.perf_counter() - start))
        print(f"== {name}: {verdict}", flush=True)
    p = torch.cuda.get_device_properties(0)
    print(f"\ngpu-check of coalign {coalign.__version__}, torch {torch.__version__}, {p.name} ({p.major}.{p.minor})")
    for name, verdict, seconds in results:
        print(f"  {name:<32} {verdict} ({seconds:.0f} s)")
    return int(any(verdict == "failed" for _, verdict, _ in results))


if __name__ == "__main__":
    sys.exit({"build": build, "small": small_calls}.get("".join(sys.argv[1:]), main)())
