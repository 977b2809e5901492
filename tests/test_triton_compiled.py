"""The Triton kernels' machine code, compiled here for GPUs that need not be here."""

import os

import pytest

pytest.importorskip("triton", reason="Triton is not installed")
if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("the interpreter compiles nothing; the ordinary process runs these", allow_module_level=True)

import torch
import triton
from coalign.kernels.problem import PLAIN, Rule
from coalign.kernels.triton.report import ARCHITECTURES, Case, cases, compile_case, of_lengths

# bytes a thread: Triton 3.6's and 3.7's compilers spill two registers in one kernel, 3.8's four, 3.9's none
ALLOWED_SPILLS = {"3.6": 8, "3.7": 8, "3.8": 16}.get(".".join(triton.__version__.split(".")[:2]), 0)


def everything():
    """All cases for the architectures that most users have; d2l's own sizes for the others."""
    for name, architecture in ARCHITECTURES.items():
        for case in cases(architecture):
            if name in ("sm_80", "sm_90", "sm_100") or (case.at_d2l_size and case.arithmetic != "ieee"):
                yield pytest.param(case, architecture, id=f"{name}-{case.arithmetic}-{case.name}")


@pytest.mark.parametrize(("case", "architecture"), everything())
def test_machine_code(case, architecture):
    compiled = compile_case(case, architecture)
    assert compiled.faults() == []
    if case.at_d2l_size and case.arithmetic != "ieee":
        assert compiled.spilled <= ALLOWED_SPILLS
    assert 0 < compiled.occupancy <= 1


@pytest.mark.parametrize("length", [64, 1024])
def test_machine_code_with_clamp_and_dropout(length):
    architecture = ARCHITECTURES["sm_90"]
    rule = Rule(0.5, 2.0, 0.1, 0.3, torch.empty((), dtype=torch.int64, device="meta"))
    both = (of_lengths(length, 200, 100, "half", "lengths", architecture, r) for r in (PLAIN, rule))
    for launches in zip(*both, strict=True):
        plain, ruled = (compile_case(Case(x.kernel.__name__, "half", x), architecture) for x in launches)
        assert ruled.faults() == []
        assert ruled.spilled <= ALLOWED_SPILLS
        assert ruled.instructions > plain.instructions or launches[0].kernel.__name__ == "stream_delta"


def test_spills_are_seen():
    """One warp can't hold a 64 x 64 tile: the report must say so, or it would pass anything."""
    architecture = ARCHITECTURES["sm_90"]
    case = next(c for c in cases(architecture) if (c.arithmetic, c.name) == ("half", "tile_backward 64"))
    starved = case._replace(launch=case.launch._replace(choice=case.launch.choice._replace(num_warps=1)))
    assert compile_case(starved, architecture).spilled > 1000


def test_too_much_shared_memory_is_seen():
    """A pipeline made for 227 KB does not fit a GPU with 99 KB."""
    case = next(
        c for c in cases(ARCHITECTURES["sm_90"]) if (c.arithmetic, c.name) == ("half", "stream_backward 200/100")
    )
    assert any("shared memory" in fault for fault in compile_case(case, ARCHITECTURES["sm_120"]).faults())


def test_float32_without_tf32_uses_no_tensor_cores():
    architecture = ARCHITECTURES["sm_80"]
    case = next(c for c in cases(architecture) if (c.arithmetic, c.name) == ("ieee", "tile_forward 32"))
    assert compile_case(case, architecture).matrix == 0
