"""The C++ kernels and threads: the same bits for any number of them, many callers at once, and fork."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
import threading

import pytest
import torch

import coalign

DROPS = {"dropout": 0.3, "clamp": 0.8, "seed": torch.tensor(5)}
CASES = {
    "long rows": {"pairs": 1, "m": 513, "n": 200},
    "long columns": {"pairs": 2, "m": 100, "n": 700},
    "masked": {"pairs": 1, "m": 300, "n": 260, "mask": True},
    "many short": {"pairs": 40, "m": 20, "n": 12, "mask": True},
    "one of a block": {"pairs": 1, "m": 50, "n": 47, "width": 200},
    "one of a whole block": {"pairs": 1, "m": 64, "n": 64, "width": 333},
    "few of a block": {"pairs": 3, "m": 39, "n": 61, "width": 150, "mask": True},
    "more of a block": {"pairs": 7, "m": 61, "n": 58, "width": 200},
    "large scores": {"pairs": 1, "m": 61, "n": 64, "width": 200, "scale": 30.0},
    "with dropout": {"pairs": 2, "m": 64, "n": 57, "width": 150, "mask": True, **DROPS},
}


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def align(dtype, pairs, m, n, width=40, mask=False, scale=0.3, **options):
    """Everything that a forward and a backward pass find, with a bias."""
    generator = torch.Generator().manual_seed(0)
    shapes = (m, width), (n, width), (m, 24), (n, 17)
    made = [torch.randn(pairs, *shape, generator=generator).to(dtype) for shape in shapes]
    inputs = [*made, torch.randn(pairs, m, n, generator=generator)]
    for t in inputs:
        t.requires_grad_()
    if mask:
        options["mask_a"] = torch.rand(pairs, m, generator=generator) < 0.7
        options["lengths_b"] = torch.randint(0, n + 1, (pairs,), generator=generator)
    out = coalign.soft_align(*inputs[:4], bias=inputs[4], scale=scale, return_lse=True, backend="native", **options)
    return [*out, *torch.autograd.grad(out, inputs, [torch.ones_like(t) for t in out])]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64], ids=str)
@pytest.mark.parametrize("case", CASES)
def test_bits_do_not_depend_on_threads(case, dtype, threads):
    """Where pairs are few, threads share them, by parts or step by step, and nothing may show of it."""
    threads(1)
    alone = align(dtype, **CASES[case])
    for count in (2, 3, 16):
        threads(count)
        for found, expected in zip(align(dtype, **CASES[case]), alone, strict=True):
            assert torch.equal(found, expected)


@pytest.mark.parametrize(("m", "n", "width"), [(700, 650, 32), (61, 50, 128), (64, 64, 128)])
def test_what_is_shared_is_right(m, n, width, threads):
    """Were the parts of a pair not done at all, equal bits would prove little: every part's rows are right."""
    threads(16)
    inputs = [torch.randn(1, rows, width, dtype=torch.float64) for rows in (m, n, m, n)]
    found, expected = (coalign.soft_align(*inputs, return_lse=True, backend=name) for name in ("native", "reference"))
    for t, e in zip(found, expected, strict=True):
        assert torch.allclose(t, e, rtol=1e-11, atol=1e-12)


def test_many_threads_call_at_once():
    cases = [(torch.float32, CASES[name]) for name in CASES] + [(torch.bfloat16, CASES["masked"])]
    expected = [align(dtype, **case) for dtype, case in cases]
    wrong = []

    def call(start):
        for k in range(12):
            at = (start + k) % len(cases)
            found = align(cases[at][0], **cases[at][1])
            wrong.extend(k for a, b in zip(found, expected[at], strict=True) if not torch.equal(a, b))

    callers = [threading.Thread(target=call, args=(i,)) for i in range(8)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert not wrong


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_fork_after_a_call():
    """A child of a process that has used the kernels, and so torch's threads, uses them as well (data loaders)."""
    program = textwrap.dedent("""
        import os, torch, coalign
        torch.set_num_threads(1)  # the children's: OpenMP's own threads do not survive a fork
        x = [torch.randn(4, n, w) for n, w in ((9, 8), (7, 8), (9, 5), (7, 3))]
        before = coalign.soft_align(*x, backend="native")
        child = os.fork()
        if child == 0:
            after = coalign.soft_align(*x, backend="native")
            os._exit(0 if all(map(torch.equal, before, after)) else 1)
        raise SystemExit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    """)
    done = subprocess.run([sys.executable, "-c", program], timeout=120, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_after_memory_ran_out_other_calls_are_right():
    """A thread's memory is no larger than it was really given."""
    code = """
        import resource
        import torch
        from coalign import soft_align

        torch.set_num_threads(1)

        def call(n, width=256):
            f = torch.ones(1, n, width, dtype=torch.float16)
            return soft_align(f, f[:, :1], f[..., :1], f[:, :1, :1], backend="native").beta

        call(16)
        pages = int(open("/proc/self/statm").read().split()[0])
        huge = torch.ones(1, 1, 256, dtype=torch.float16).expand(1, 200_000, 256)
        resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + (150 << 20),) * 2)
        try:
            soft_align(huge, huge[:, :1], huge[..., :1], huge[:, :1, :1], backend="native")
        except RuntimeError:
            print("too large")
        for n in (8, 64, 1000, 5000):
            assert torch.equal(call(n), torch.ones(1, n, 1, dtype=torch.float16)), n
        print("right")
    """
    child = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=False, timeout=300
    )
    assert child.returncode == 0, child.stderr
    assert child.stdout.split("\n")[:2] == ["too large", "right"]
