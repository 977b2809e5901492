"""Which backend serves a call, what the user is told about it, and what works without Triton."""

from __future__ import annotations

import re
import subprocess
import sys
import textwrap
from types import SimpleNamespace

import pytest
import torch
from coalign.kernels import dispatch, reference
from coalign.kernels.problem import Problem

import coalign
from coalign import BackendUnavailable, explain, soft_align
from coalign.testing import Case

ORDINARY = Case("ordinary", 5, 4)


@pytest.fixture(autouse=True)
def no_preference(monkeypatch):
    monkeypatch.delenv("COALIGN_BACKEND", raising=False)


@pytest.fixture
def fake_backends(monkeypatch):
    """Two backends in front of the reference: one that only takes packed calls, and one that only goes forward."""
    served: list[str] = []

    def fake(name, reasons):
        def forward(*operands):
            served.append(f"{name} forward")
            return reference.forward(*operands)

        def backward(*operands):
            served.append(f"{name} backward")
            return reference.backward(*operands)

        return SimpleNamespace(name=name, unsupported=reasons, forward=forward, backward=backward)

    backends = {
        "packer": fake("packer", lambda problem: [] if problem.packed else ["padding is beneath it", "so are you"]),
        "forwarder": fake("forwarder", lambda problem: ["it never looks back"] if problem.backward else []),
        "reference": fake("reference", lambda problem: []),
    }
    monkeypatch.setattr(dispatch, "_order", list(backends))
    monkeypatch.setattr(dispatch, "_backends", backends)
    monkeypatch.setattr(dispatch, "remembered", {})
    return served


def call(backend: str | None = None, case: Case = ORDINARY):
    operands = case.operands()
    return soft_align(**operands.differentiable(), **operands.options, backend=backend)


def test_first_without_a_reason_serves_each_pass(fake_backends):
    call().beta.sum().backward()
    assert fake_backends == ["forwarder forward", "reference backward"]


def test_packed_calls_reach_the_packer(fake_backends):
    operands = ORDINARY.but(tokens_a=(2, 3), tokens_b=(4, 1), extent_a="packed", extent_b="packed").operands()
    coalign.soft_align_packed(**operands.differentiable(), **operands.options)
    assert fake_backends == ["packer forward"]


def test_named_backend_never_falls_back(fake_backends):
    with pytest.raises(BackendUnavailable, match=r"'packer' can't serve this call.*padding is beneath it; so are you"):
        call("packer")
    assert fake_backends == []
    beta = call("forwarder").beta
    with pytest.raises(BackendUnavailable, match="it never looks back"):
        beta.sum().backward()
    assert fake_backends == ["forwarder forward"]


def test_environment_names_a_backend(fake_backends, monkeypatch):
    monkeypatch.setenv("COALIGN_BACKEND", "reference")
    call()
    call("forwarder")  # an argument goes before
    assert fake_backends == ["reference forward", "forwarder forward"]
    monkeypatch.setenv("COALIGN_BACKEND", "packer")
    with pytest.raises(BackendUnavailable, match="'packer'"):
        call()
    monkeypatch.setenv("COALIGN_BACKEND", "")  # as if it were not there
    call()
    assert fake_backends[-1] == "forwarder forward"


def test_unknown_names(monkeypatch):
    with pytest.raises(
        ValueError, match=r"backend='cutlass' is no backend; choose from 'triton', 'native', 'reference'"
    ):
        call("cutlass")
    monkeypatch.setenv("COALIGN_BACKEND", "cutlass")
    with pytest.raises(ValueError, match="COALIGN_BACKEND='cutlass' is no backend"):
        call()


def test_errors_of_a_backend_are_not_swallowed(monkeypatch):
    def broken(*operands):
        raise RuntimeError("the kernel is on fire")

    monkeypatch.setattr(reference, "forward", broken)
    with pytest.raises(RuntimeError, match="on fire"):
        call("reference")


@pytest.mark.parametrize("learned", ["bias", "scale"])
def test_explain_knows_every_gradient_and_draws_nothing(learned):
    x = torch.randn(2, 3, 4)
    options = {"bias": torch.zeros(3, 3), "scale": torch.ones(())}
    state = torch.get_rng_state()
    before = explain(x, x, x, x, dropout=0.5, **options)
    options[learned].requires_grad_()
    assert len(explain(x, x, x, x, dropout=0.5, **options).splitlines()) == 2 * len(before.splitlines())
    assert torch.equal(torch.get_rng_state(), state)


def test_explain_goes_by_the_environment_and_checks_names(monkeypatch):
    x = torch.randn(2, 3, 4)
    monkeypatch.setenv("COALIGN_BACKEND", "reference")
    assert "  native     not asked for ('reference' was named)" in explain(x, x, x, x)
    with pytest.raises(ValueError, match="backend='no such' is no backend"):
        explain(x, x, x, x, backend="no such")
    monkeypatch.setenv("COALIGN_BACKEND", "nor this")
    with pytest.raises(ValueError, match="COALIGN_BACKEND='nor this' is no backend"):
        explain(x, x, x, x)


def test_explain_takes_no_nested_tensors():
    x = torch.nested.nested_tensor([torch.randn(2, 3), torch.randn(4, 3)], layout=torch.jagged)
    with pytest.raises(TypeError, match="explain takes padded operands, not nested ones"):
        explain(x, x, x, x)


def test_explain(fake_backends):
    operands = ORDINARY.operands()
    forward = explain(operands.f_a, operands.f_b, operands.a, operands.b).splitlines()
    assert forward == [
        "forward, 2 pairs of up to 5 x 4 (full x full), h=8, d_a=6, d_b=5, float32 on cpu",
        "  packer     no: padding is beneath it; so are you",
        "  forwarder  serves",
        "  reference  could serve",
    ]
    for given, kinds in (
        ({"lengths_a": torch.tensor([5, 1])}, "lengths x full"),
        ({"mask_b": torch.ones(4, dtype=torch.bool)}, "full x mask"),
    ):
        assert f" of up to 5 x 4 ({kinds}), " in explain(operands.f_a, operands.f_b, operands.a, operands.b, **given)
    both = explain(**operands.differentiable(), bias=torch.zeros(5, 4)).splitlines()
    assert len(both) == 8
    assert both[4].startswith("backward, 2 pairs")
    assert both[4].endswith("bias")
    assert both[6:] == ["  forwarder  no: it never looks back", "  reference  serves"]
    named = explain(operands.f_a, operands.f_b, operands.a, operands.b, backend="reference")
    assert "forwarder  not asked for ('reference' was named)" in named
    assert fake_backends == []


def test_every_listed_backend_has_the_four_names():
    for name in coalign.BACKENDS:
        backend = dispatch.backend(name)
        assert backend.name == name
        assert all(callable(getattr(backend, part)) for part in ("unsupported", "forward", "backward"))
    assert coalign.BACKENDS[-1] == "reference"


def in_fresh_process(code: str) -> str:
    ran = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, timeout=300)
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


def test_the_cpu_does_not_import_triton():
    out = in_fresh_process(
        "import sys, torch, coalign; coalign.soft_align(*torch.randn(4, 2, 5, 3)); print('triton' in sys.modules)"
    )
    assert out.strip() == "False"


def test_works_without_triton():
    """Nothing imports Triton, and the next backend serves, where it is not installed."""
    out = in_fresh_process(
        """
        import importlib.util, sys

        class NoTriton:
            def find_spec(self, name, path=None, target=None):
                if name == "triton" or name.startswith("triton."):
                    raise ModuleNotFoundError(f"No module named {name!r}", name=name)

        sys.meta_path.insert(0, NoTriton())
        find_spec = importlib.util.find_spec
        importlib.util.find_spec = lambda name, package=None: None if name == "triton" else find_spec(name, package)

        import torch, coalign
        f_a, f_b, a, b = torch.randn(4, 2, 5, 3, requires_grad=True)
        coalign.soft_align(f_a, f_b, a, b).beta.sum().backward()
        print(coalign.explain(f_a, f_b, a, b))
        try:
            coalign.soft_align(f_a, f_b, a, b, backend="triton")
        except coalign.BackendUnavailable as error:
            print("unavailable:", error)
        assert "triton" not in sys.modules
        """
    )
    assert "triton     no: Triton is not installed" in out
    assert "native     serves" in out
    assert "unavailable: backend 'triton' can't serve this call" in out


def test_a_broken_triton_is_a_reason_not_an_error(tmp_path):
    (tmp_path / "triton.py").write_text("raise OSError('libLLVM is missing')")
    out = in_fresh_process(
        f"""
        import os, sys
        sys.path.insert(0, {str(tmp_path)!r})
        os.environ["TRITON_INTERPRET"] = "1"
        import torch, coalign
        f_a, f_b, a, b = torch.randn(4, 2, 5, 3)
        coalign.soft_align(f_a, f_b, a, b)
        print(coalign.explain(f_a, f_b, a, b))
        """
    )
    assert "triton     no: Triton is installed but can't be imported: OSError: libLLVM is missing" in out
    assert "native     serves" in out


def test_triton_without_a_c_compiler_is_passed_over(monkeypatch):
    triton = pytest.importorskip("triton", reason="Triton is not installed") and dispatch.backend("triton")
    trouble = triton._trouble.__wrapped__
    assert trouble() is None
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setattr(triton.shutil, "which", lambda name: None)
    assert "no C compiler" in trouble(compiles=True)
    monkeypatch.setenv("CC", "/opt/cc")
    assert trouble(compiles=True) is None


def test_import_is_light():
    """Importing the package imports neither Triton nor the compiler."""
    out = in_fresh_process("import sys, coalign; print([m for m in ('triton', 'torch._dynamo') if m in sys.modules])")
    assert out.strip() == "[]"


def test_first_call_ever_may_be_compiled():
    """Nothing needs warming up before torch.compile(fullgraph=True), here with the default compiler."""
    out = in_fresh_process(
        """
        import torch, coalign

        @torch.compile(fullgraph=True)
        def call(f_a, f_b, a, b):
            beta, alpha = coalign.soft_align(f_a, f_b, a, b)
            return (beta.tanh() * 2).sum() + alpha.sum()

        tensors = [t.requires_grad_() for t in torch.randn(4, 2, 5, 3)]
        gradients = torch.autograd.grad(call(*tensors), tensors)
        beta, alpha = coalign.soft_align(*tensors)
        expected = torch.autograd.grad((beta.tanh() * 2).sum() + alpha.sum(), tensors)
        torch.testing.assert_close(gradients, expected)
        print("compiled")
        """
    )
    assert out.strip() == "compiled"


@pytest.mark.parametrize(
    ("capability", "hip", "dtype", "rows", "reason"),
    [
        ((8, 0), "6.2", torch.float32, 5, "NVIDIA's GPUs"),
        ((6, 1), None, torch.float32, 5, r"capability is 6\.1; the CUDA kernels need 7\.0"),
        ((8, 0), None, torch.float64, 5, "float64 is for the reference"),
        ((8, 0), None, torch.float32, 65535 * 64 + 1, "take up to 4194240 rows a side"),
        ((8, 0), None, torch.bfloat16, 65535 * 64, "no nvcc in this test"),
    ],
)
def test_native_on_a_gpu_says_why_not(monkeypatch, capability, hip, dtype, rows, reason):
    """Without a GPU: the reasons come in this order, and building the kernels is the last thing tried."""
    from coalign.kernels import gpu
    from coalign.kernels.native import build_cuda

    monkeypatch.setattr(gpu, "capability", lambda device: capability)
    monkeypatch.setattr(torch.version, "hip", hip)
    monkeypatch.setattr(build_cuda, "extension", SimpleNamespace(reason=lambda: "no nvcc in this test"))
    problem = Problem(torch.device("cuda", 0), dtype, 1, rows, 4, 8, 6, 5, "full", "full", False, False)
    (found,) = dispatch.backend("native").unsupported(problem)
    assert re.search(reason, found)


@pytest.mark.parametrize(
    ("widths", "triton", "native"),
    [
        ((4_194_240, 4_194_240, 5), None, "of up to 4194048 numbers, features and values together"),
        ((2_000_000, 5, 2_194_048), None, None),
        ((2_000_000, 2_194_049, 5), None, "of up to 4194048 numbers"),
        ((8, 4_194_241, 5), "of up to 4194240 numbers", "of up to 4194048 numbers"),
        ((2**31 + 8, 4, 4), "of up to 4194240 numbers", "of up to 4194048 numbers"),
    ],
)
def test_rows_too_wide_for_a_grid_are_a_reason(widths, triton, native, monkeypatch):
    """And no error of the launch, or a number that wrapped around: another backend serves."""
    from coalign.kernels import gpu
    from coalign.kernels.native import cuda

    monkeypatch.setattr(gpu, "capability", lambda device: (8, 0))
    problem = Problem(torch.device("cuda", 0), torch.bfloat16, 1, 100, 4, *widths, "full", "full", False, False)
    for found, expected in (
        (dispatch.backend("triton").unsupported(problem), triton),
        (cuda.beyond(problem), native),
    ):
        assert any("of up to" in reason for reason in found) == (expected is not None)
        assert expected is None or expected in found[0]


@pytest.mark.parametrize(
    ("capability", "dtype", "most", "reason"),
    [
        ((8, 0), torch.float16, 20, "in float32 and bfloat16, not torch.float16"),
        ((6, 1), torch.float32, 20, r"capability is 6\.1"),
        ((8, 0), torch.bfloat16, 20, "no nvcc in this test"),
    ],
)
def test_a_frozen_models_cuda_kernel_says_why_not(monkeypatch, capability, dtype, most, reason):
    from coalign.kernels import gpu
    from coalign.kernels.native import build_cuda, cuda_frozen

    monkeypatch.setattr(gpu, "capability", lambda device: capability)
    monkeypatch.setattr(build_cuda, "extension", SimpleNamespace(reason=lambda: "no nvcc in this test"))
    (found,) = cuda_frozen.unsupported(torch.empty(7, 60, dtype=dtype, device="meta"), most)
    assert re.search(reason, found)


def test_a_backend_of_ones_own():
    class Own:
        name = "own"
        served = 0

        def unsupported(self, problem):
            return ["bias is not for me"] if problem.bias else []

        def forward(self, *call):
            self.served += 1
            return dispatch.backend("reference").forward(*call)

        def backward(self, *call):
            return dispatch.backend("reference").backward(*call)

    x, own = torch.randn(1, 2, 3), Own()
    take_away = dispatch.register(own, before="triton")
    try:
        coalign.soft_align(x, x, x, x)
        assert own.served == 1
        coalign.soft_align(x, x, x, x, bias=torch.zeros(2, 2))
        coalign.soft_align(x, x, x, x, backend="reference")
        assert own.served == 1
        assert "bias is not for me" in coalign.explain(x, x, x, x, bias=torch.zeros(2, 2))
        with pytest.raises(ValueError, match="'own' already"):
            dispatch.register(own)
        with pytest.raises(ValueError, match="'first' is no backend"):
            dispatch.register(Own.__new__(type("Two", (Own,), {"name": "two"})), before="first")
    finally:
        take_away()
    with pytest.raises(ValueError, match="'own' is no backend"):
        coalign.soft_align(x, x, x, x, backend="own")
