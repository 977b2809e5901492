"""Every route of the CUDA kernels on small operands: cases for the simulator, and for NVIDIA's compute-sanitizer.

    compute-sanitizer --tool memcheck --kernel-regex kns=coalign --error-exitcode 1 python tests/small_calls.py

Every operand arrives on the GPU by copy, and no kernel but coalign's writes what its kernels read: so that initcheck,
which watches those alone, sees each write.
"""

from __future__ import annotations

import torch

from coalign.testing import Case, assert_accurate, run

RAGGED = {"extent_a": "lengths", "extent_b": "lengths"}
CASES = (
    Case("tile of 16", 16, 9, tokens_a=(16, 3), tokens_b=(0, 9), **RAGGED),
    Case("tile of 32", 20, 32, h=40, d_a=36, d_b=20, tokens_a=(9, 20), extent_a="mask"),
    Case("tile of 64, widths of the d2l book", 33, 50, h=200, d_a=100, d_b=100, batch=(1,)),
    Case("odd widths", 7, 5, h=13, d_a=9, d_b=3),
    Case("packed", 40, 17, tokens_a=(40, 3), tokens_b=(2, 17), extent_a="packed", extent_b="packed"),
    Case("packed, long", 90, 70, tokens_a=(90, 3), tokens_b=(2, 70), extent_a="packed", extent_b="packed"),
    Case("long, bias", 70, 130, h=20, d_a=24, d_b=9, tokens_a=(70, 66), tokens_b=(130, 3), bias="full", **RAGGED),
    Case("long, wide values", 66, 20, h=72, d_a=140, d_b=150, batch=(1,)),
)


def main() -> None:
    """Run every case in every dtype, float32 also in TF32, and hold it against the oracle."""
    for case in CASES:
        for dtype in (torch.float32, torch.bfloat16, torch.float16):
            operands = case.but(dtype=dtype).operands("cuda")
            assert_accurate(run(operands, "native"), operands)
        operands = case.operands("cuda")
        torch.backends.cuda.matmul.fp32_precision = "tf32"
        try:
            assert_accurate(run(operands, "native"), operands, 4e-3)
        finally:
            torch.backends.cuda.matmul.fp32_precision = "ieee"
        print(f"{case.name}: right in every dtype", flush=True)


if __name__ == "__main__":
    main()
