"""Calls of sizes seen before are launched again with their own tensors; without a GPU, on what Triton interprets."""

import pytest
import torch
from conftest import INTERPRETING

from coalign.testing import Case, assert_accurate, run

if not INTERPRETING:
    pytest.skip("Triton interprets in a process of its own (make test-triton)", allow_module_level=True)

from coalign.kernels.triton import prepared
from coalign.kernels.triton.launch import Launch

CASES = [
    Case("tile", 20, 13, h=12, d_a=6, d_b=10),
    Case("lengths", 20, 13, tokens_a=(20, 3), tokens_b=(13, 0), extent_a="lengths", extent_b="lengths"),
    Case("mask and bias", 9, 7, tokens_a=(6, 1), extent_a="mask", bias="full"),
    Case("packed", 16, 12, tokens_a=(16, 3), tokens_b=(5, 12), extent_a="packed", extent_b="packed"),
    Case("stream", 140, 20, h=12, d_a=6, d_b=10, batch=(1,)),
]


class Compiled:
    """In place of a compiled kernel: takes its arguments by place, tensors by their addresses, and interprets it."""

    def __init__(self, launch, interpret, tensors):
        self.launch, self.interpret, self.tensors, self.runs = launch, interpret, tensors, 0

    def __getitem__(self, grid):
        def run(*arguments):
            self.runs += 1
            of = dict(zip(self.launch.kernel.arg_names, arguments, strict=True))
            found = {}
            for name, value in self.launch.arguments.items():
                if name in of:
                    found[name] = self.tensors[of[name]] if isinstance(value, torch.Tensor) else of[name]
            self.interpret(self.launch._replace(grid=grid, arguments=found))

        return run


@pytest.fixture
def compiled(monkeypatch):
    """What was compiled, in order; launches compile something, and prepared ones find their tensors."""
    tensors, made = {}, []
    run, launch = Launch.run, prepared.launch

    def compiling(self):
        run(self)
        made.append(Compiled(self, run, tensors))
        return made[-1]

    def launching(key, given, plan):
        tensors.clear()
        tensors.update({t.data_ptr(): t for t in given.values() if t is not None})
        launch(key, given, plan)

    monkeypatch.setattr(Launch, "run", compiling)
    monkeypatch.setattr(prepared, "launch", launching)
    prepared.forget()
    yield made
    prepared.forget()


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_other_tensors_of_the_same_sizes(case, compiled):
    """Forward and backward: planned once, right every time."""
    for seed in range(3):
        operands = case.but(seed=seed).operands("cpu")
        assert_accurate(run(operands, "triton"), operands)
    assert compiled
    assert all(one.runs == 2 for one in compiled)


def test_packed_batches_of_other_totals(compiled):
    """Of as many pairs, with other lengths: what was planned for the one serves the other."""
    for tokens_a, tokens_b in (((16, 3), (5, 12)), ((7, 16), (12, 1))):
        case = CASES[3].but(tokens_a=tokens_a, tokens_b=tokens_b)
        operands = case.operands("cpu")
        assert_accurate(run(operands, "triton"), operands)
    assert [one.runs for one in compiled] == [1, 1]


def test_one_tensor_for_both_sides_and_then_two(compiled):
    """An operand that was both sides' leaves no trace in what is launched for two."""
    from coalign import soft_align

    torch.manual_seed(0)
    f, g, x, y = (torch.randn(1, 5, 4) for _ in range(4))
    soft_align(f, f, x, x, backend="triton")
    found, expected = (soft_align(f, g, x, y, backend=name) for name in ("triton", "reference"))
    assert compiled[0].runs == 1
    torch.testing.assert_close(found.beta, expected.beta)
    torch.testing.assert_close(found.alpha, expected.alpha)


def test_addresses_that_are_no_multiples_of_sixteen_are_launched_with_their_own(compiled):
    """A batch's second side begins where the first one's tokens end."""
    from coalign import soft_align

    torch.manual_seed(0)
    both = torch.randn(13, 3)
    for first in (4, 5, 4, 5):  # 4 rows of 3 floats are 48 bytes, 5 are 60
        f, x = both[None, first : first + 4], both[None, :4]
        found, expected = (soft_align(f, f, x, x, backend=name) for name in ("triton", "reference"))
        torch.testing.assert_close(found.beta, expected.beta)
    assert [one.runs for one in compiled] == [1, 1]


def test_a_longest_length_beyond_all_rows_makes_no_grid_larger(monkeypatch):
    """A GPU launches up to 2^31 - 1 programs at once; 2^63 - 1 rows a pair would be many more."""
    from coalign import soft_align_packed

    grids = []
    monkeypatch.setattr(Launch, "run", lambda self: grids.append(self.grid))
    offsets = torch.tensor((0, 100, 300), dtype=torch.int32)
    f, x = torch.randn(300, 12), torch.randn(300, 6)
    short = torch.tensor((0, 2, 4), dtype=torch.int32)
    soft_align_packed(f, f, x, x, offsets, offsets, 2**63 - 1, 2**63 - 1, backend="triton")
    soft_align_packed(f[:4], f[:4], x[:4], x[:4], short, short, 2**63 - 1, 2, backend="triton")
    assert grids == [(32, 1), (2,)]


@pytest.mark.parametrize(("hip", "runs"), [(None, [3]), ("7.0", [0, 2])])
def test_on_amd_gpus_tensors_in_much_memory_have_a_launch_of_their_own(hip, runs, compiled, monkeypatch):
    """Code that was compiled for offsets of 32 bits must not be given what lies beyond them: a view, a longer batch."""
    from coalign import soft_align_packed

    monkeypatch.setattr(torch.version, "hip", hip)
    monkeypatch.setattr(prepared, "FAR", 400)
    torch.manual_seed(0)
    for rows in (4, 40, 41, 42):  # of 3 floats: 48 bytes; 480 and more
        f, offsets = torch.randn(rows, 3), torch.tensor((0, rows), dtype=torch.int32)
        given = f, f, f, f, offsets, offsets, 50, 50
        found, expected = (soft_align_packed(*given, backend=name) for name in ("triton", "reference"))
        torch.testing.assert_close(found.beta, expected.beta)
    assert [one.runs for one in compiled] == runs


@pytest.mark.parametrize("kind", ["full", "lengths", "packed"])
def test_a_call_without_options_comes_the_short_way(kind, compiled, monkeypatch):
    """As on a GPU: launched as before, and the long way's bits, of outputs and of gradients."""
    from coalign.kernels import dispatch, quick, triton

    from coalign import soft_align, soft_align_packed

    monkeypatch.delenv("COALIGN_BACKEND", raising=False)
    monkeypatch.setattr(triton, "plain_devices", ("cpu",))
    monkeypatch.setattr(dispatch, "remembered", {})
    torch.manual_seed(0)
    operands = [torch.randn(2, n, 6, requires_grad=True) for n in (9, 7, 9, 7)]
    extents = {"lengths_a": torch.tensor([9, 2]), "lengths_b": torch.tensor([0, 7])} if kind == "lengths" else {}
    align, short = soft_align, quick.serve
    if kind == "packed":
        operands = [t.detach().flatten(0, 1).requires_grad_() for t in operands]
        offsets = {
            f"offsets_{side}": torch.tensor((0, 3, 2 * n), dtype=torch.int32)
            for side, n in zip("ab", (9, 7), strict=True)
        }
        extents = {**offsets, "max_length_a": 15, "max_length_b": 11}
        align, short = soft_align_packed, quick.serve_packed

    def outcome(call, **options):
        beta, alpha, *_ = call(*operands, **extents, **options)
        return beta, alpha, *torch.autograd.grad(beta.sin().sum() + alpha.cos().sum(), operands)

    long = outcome(align, return_lse=True)
    assert short(*operands, **extents) is None
    align(*operands, **extents)
    found = outcome(short)
    assert all(torch.equal(f, t) for f, t in zip(found, long, strict=True))
    assert [one.runs for one in compiled] == [2, 1], "planned once for each pass, whatever way a call comes"
    with torch.no_grad():
        assert all(torch.equal(f, t) for f, t in zip(short(*operands, **extents), long[:2], strict=True))


def test_what_a_plan_had_to_copy_is_planned_again(compiled):
    from coalign import soft_align

    torch.manual_seed(0)
    f, g, x, y = (torch.randn(1, 4, 5).mT for _ in range(4))
    for _ in range(2):
        found, expected = (soft_align(f, g, x, y, backend=name) for name in ("triton", "reference"))
        torch.testing.assert_close(found.beta, expected.beta)
    assert [one.runs for one in compiled] == [0, 0]


def test_there_are_never_too_many(compiled, monkeypatch):
    from coalign import soft_align

    monkeypatch.setattr(prepared, "MOST", 2)
    for rows in (3, 4, 5, 6):
        f, x = torch.randn(1, rows, 4), torch.randn(1, rows, 4)
        soft_align(f, f, x, x, backend="triton")
        assert len(prepared._kept) <= 2
