"""The C++ kernels' alignment on 64-bit ARM: built for it by Clang, run in an emulator, held to the reference."""

from __future__ import annotations

import os
import struct
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from coalign.kernels.native import build

import coalign

pytest.importorskip("ziglang", reason="a compiler for ARM comes with coalign[dev]")
pytest.importorskip("unicorn", reason="an emulator of ARM comes with coalign[dev]")

from arm.emulator import Machine

ROOT = Path(__file__).parents[1]
HERE = Path(__file__).parent / "arm"
# m, n, widths of f, a and b
SHAPES = [(1, 1, 1, 1, 1), (2, 3, 5, 7, 4), (15, 8, 200, 100, 33), (50, 47, 64, 24, 40), (64, 64, 31, 17, 16)]
LONG = [(65, 129, 40, 24, 17), (1, 90, 13, 5, 6)]


@pytest.fixture(scope="module")
def program(pytestconfig, tmp_path_factory):
    cache = pytestconfig.cache.mkdir("zig")  # of what its C++ library is made of: minutes
    path = tmp_path_factory.mktemp("arm") / "align"
    target = ("-target", "aarch64-linux-musl", "-mcpu=neoverse_n1", "-static")
    flags = ("-Wall", "-Werror", *build.FLAGS, f"-I{HERE}", f"-I{ROOT / 'csrc'}")
    command = [sys.executable, "-m", "ziglang", "c++", *target, *flags]
    built = subprocess.run(
        [*command, str(HERE / "align.cpp"), "-o", str(path)],
        env={**os.environ, "ZIG_GLOBAL_CACHE_DIR": str(cache), "ZIG_LOCAL_CACHE_DIR": str(cache)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert built.returncode == 0, built.stderr
    return path


def make(m, n, width_f, width_a, width_b, dtype):
    """f_a, f_b, a, b, and gradients of beta and alpha."""
    generator = torch.Generator().manual_seed(m + n)
    shapes = (m, width_f), (n, width_f), (m, width_a), (n, width_b), (m, width_b), (n, width_a)
    return [torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype).double() for shape in shapes]


def emulated(program, cases):
    """Of each case beta, alpha, and the gradients of f_a, f_b, a and b. A case: shape, dtype, scale, threads."""
    given = b""
    for shape, dtype, scale, threads in cases:
        given += struct.pack("<7id", *shape, dtype.itemsize, threads, scale)
        given += b"".join(t.numpy().tobytes() for t in make(*shape, dtype))
    numbers = torch.frombuffer(bytearray(Machine(program, given).run()), dtype=torch.float64)
    for (m, n, width_f, width_a, width_b), *_ in cases:
        found = []
        for shape in (m, width_b), (n, width_a), (m, width_f), (n, width_f), (m, width_a), (n, width_b):
            found.append(numbers[: shape[0] * shape[1]].view(shape))
            numbers = numbers[shape[0] * shape[1] :]
        yield found
    assert not len(numbers)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 2e-5), (torch.float64, 1e-12)], ids=str)
def test_what_arm_computes_is_right(dtype, tolerance, program):
    cases = [(shape, dtype, scale, 1) for shape in SHAPES + LONG for scale in (0.1, 3.0)]
    for case, found in zip(cases, emulated(program, cases), strict=True):
        shape, _, scale, _ = case
        *inputs, dbeta, dalpha = make(*shape, dtype)
        inputs = [t.unsqueeze(0).requires_grad_() for t in inputs]
        out = coalign.soft_align(*inputs, scale=scale, backend="reference")
        expected = [*out, *torch.autograd.grad(out, inputs, [dbeta.unsqueeze(0), dalpha.unsqueeze(0)])]
        for t, e in zip(found, expected, strict=True):
            assert torch.allclose(t, e[0], rtol=tolerance, atol=tolerance * max(1.0, e.abs().max().item())), case


def test_bits_do_not_depend_on_threads(program):
    """Portions of a pair are other counts of rows side by side, and the same numbers."""
    for dtype in (torch.float32, torch.float64):
        alone, shared = (list(emulated(program, [(shape, dtype, 0.3, k) for shape in SHAPES])) for k in (1, 3))
        for one, other in zip(alone, shared, strict=True):
            assert all(map(torch.equal, one, other))
