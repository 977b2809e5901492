"""The CUDA kernels under the simulator: every order of threads, every arithmetic, GPUs with little shared memory.

The operator's own tests run there too, as the backend "simulated" (conftest.py).
"""

from __future__ import annotations

from itertools import accumulate
from typing import NamedTuple

import pytest
import torch
from coalign.kernels.native import cuda_frozen
from cuda_sim import simulated
from cuda_sim.simulated import Device
from torch import Tensor

from coalign.testing import Case, assert_accurate, run
from coalign.testing.accuracy import errors
from coalign.testing.oracle import pair_by_pair

pytestmark = [pytest.mark.usefixtures("poisoned_memory"), pytest.mark.parametrize("backend", [simulated], ids=["cuda"])]

RAGGED = {"extent_a": "lengths", "extent_b": "lengths"}
CASES = [
    Case("tile of 16", 16, 9, tokens_a=(16, 3), tokens_b=(0, 9), **RAGGED),
    Case("tile of 32", 20, 32, h=40, d_a=36, d_b=20, tokens_a=(9, 20), extent_a="mask"),
    Case("tile of 64, d2l widths", 33, 50, h=200, d_a=100, d_b=100, batch=(1,)),
    Case("packed, bias-free", 40, 17, tokens_a=(40, 3), tokens_b=(2, 17), extent_a="packed", extent_b="packed"),
    Case("stream", 70, 130, h=20, d_a=24, d_b=9, tokens_a=(70, 66), tokens_b=(130, 3), bias="full", **RAGGED),
    Case("stream, wide", 66, 20, h=72, d_a=140, d_b=10, batch=(1,)),
]
ARITHMETICS = {
    "ieee": (torch.float32, False),
    "tf32": (torch.float32, True),
    "bfloat16": (torch.bfloat16, True),
    "float16": (torch.float16, True),
    "bfloat16 without tensor cores": (torch.bfloat16, False),
    "float16 without tensor cores": (torch.float16, False),
}
TF32_BUDGET = 2e-3  # 10 bits of mantissa: 4.9e-4 a product, and scores up to 4 here
WITH_CASES = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
WITH_ARITHMETICS = pytest.mark.parametrize("arithmetic", ARITHMETICS)


@WITH_CASES
@WITH_ARITHMETICS
def test_every_order_of_threads_gives_the_same_bits(case, arithmetic, backend):
    dtype, tensor_cores = ARITHMETICS[arithmetic]
    operands = case.but(dtype=dtype).operands()
    with simulated.device(Device(tensor_cores)):
        first = run(operands, backend.name)
        assert_accurate(first, operands, TF32_BUDGET if arithmetic == "tf32" else None)
        for order in simulated.ORDERS[1:]:
            with simulated.order(order, seed=7):
                for name, t in run(operands, backend.name).items():
                    assert torch.equal(t, first[name]), f"{name}, {order}"


def test_tf32_is_rounded(backend):
    """Were it not, the test above would say nothing about tensor cores."""
    operands = CASES[2].operands()
    with simulated.device(Device(tensor_cores=True)):
        found = errors(run(operands, backend.name), pair_by_pair(operands))
    assert all(1e-5 < found[name] < TF32_BUDGET for name in ("beta", "alpha", "grad_f_a", "grad_b")), found


@pytest.mark.parametrize(
    ("arithmetic", "shared"),
    [("ieee", 64), ("bfloat16 without tensor cores", 64), ("ieee", 75), ("tf32", 75), ("bfloat16", 75)],
)
def test_little_shared_memory(arithmetic, shared, backend):
    """Where a tile does not fit a block's memory the stream route serves: on Turing, which has 64 KB, and others."""
    dtype, tensor_cores = ARITHMETICS[arithmetic]
    operands = CASES[2].but(dtype=dtype).operands()
    with simulated.device(Device(tensor_cores, shared * 1024)):
        assert_accurate(run(operands, backend.name), operands, TF32_BUDGET if arithmetic == "tf32" else None)


@pytest.mark.parametrize("n", [5, 140], ids=["tile", "stream"])
def test_nan_in_a_token_is_not_hidden(n, backend):
    """fmaxf passes over NaN, so a peak does not show it; the sum must."""
    operands = Case("nan", 6, n).operands()
    operands.f_a[0, 2] = torch.nan
    found, expected = run(operands, backend.name), run(operands, "reference")
    for name, t in expected.items():
        assert torch.equal(found[name].isnan(), t.isnan()), name
    assert found["alpha"][0].isnan().all()
    assert not found["alpha"][1].isnan().any()


LENGTHS = (7, 3, 0, 12, 40, 33, 1, 0), (2, 6, 4, 3, 24, 32, 1, 0)  # the one of 33 + 32 tokens takes a tile of 128
FROZEN_BUDGETS = {"ieee": 1e-5, "tf32": TF32_BUDGET, "bfloat16": 1e-2, "bfloat16 without tensor cores": 1e-2}


class FrozenCall(NamedTuple):
    """What the frozen model's kernel is given."""

    table: Tensor
    ids: tuple[Tensor, Tensor]
    offsets: tuple[Tensor, Tensor]
    weight: Tensor
    bias: Tensor

    @classmethod
    def draw(cls, lengths: tuple[tuple[int, ...], tuple[int, ...]], h: int, dtype: torch.dtype) -> FrozenCall:
        generator = torch.Generator().manual_seed(0)
        ids = tuple(torch.randint(50, (sum(side),), generator=generator) for side in lengths)
        offsets = tuple(torch.tensor([0, *accumulate(side)], dtype=torch.int32) for side in lengths)
        table, weight, bias = (torch.randn(s, generator=generator) for s in ((50, 3 * h), (h, h), (h,)))
        return cls((table * h**-0.25).to(dtype), ids, offsets, (weight * h**-0.5).to(dtype), bias)

    def truth(self) -> Tensor:
        """Each pair alone, in float64."""
        (f, own, other), weight = self.table.double().chunk(3, -1), self.weight.double()
        sums = []
        for pair in range(len(self.offsets[0]) - 1):
            a, b = (ids[o[pair] : o[pair + 1]] for ids, o in zip(self.ids, self.offsets, strict=True))
            e = f[a] @ f[b].T
            for x, aligned in ((a, e.softmax(1) @ other[b]), (b, e.T.softmax(1) @ other[a])):
                sums.append(torch.relu(torch.relu(own[x] + aligned) @ weight.T + self.bias).sum(0))
        return torch.stack(sums).view(-1, 2 * len(self.bias))


@pytest.mark.parametrize("h", [20, 70])
@pytest.mark.parametrize("arithmetic", FROZEN_BUDGETS)
def test_every_order_gives_a_frozen_models_sums_the_same_bits(arithmetic, h, monkeypatch, backend):
    dtype, tensor_cores = ARITHMETICS[arithmetic]
    monkeypatch.setattr(cuda_frozen, "owned", lambda pairs: 5)
    call = FrozenCall.draw(LENGTHS, h, dtype)
    with simulated.device(Device(tensor_cores, 227 * 1024)):
        first = backend.frozen.sums(*call, 65)
        truth = call.truth()
        assert (first - truth).norm() <= FROZEN_BUDGETS[arithmetic] * truth.norm()
        for order in simulated.ORDERS[1:]:
            with simulated.order(order, seed=7):
                assert torch.equal(backend.frozen.sums(*call, 65), first), order


@pytest.mark.parametrize(
    ("arithmetic", "h", "kilobytes", "holds"),
    [
        ("bfloat16", 200, 227, 128), ("bfloat16", 200, 99, 64), ("bfloat16", 200, 60, 32), ("bfloat16", 200, 20, 0),
        ("tf32", 200, 227, 128), ("tf32", 200, 163, 64), ("tf32", 256, 99, 32), ("ieee", 200, 64, 32),
        ("bfloat16 without tensor cores", 200, 64, 64), ("ieee", 10**8, 227, 0),
    ],
)  # fmt: skip
def test_what_a_frozen_models_kernel_holds(arithmetic, h, kilobytes, holds, backend):
    """And that it serves such pairs, and names what it can't."""
    dtype, tensor_cores = ARITHMETICS[arithmetic]
    with simulated.device(Device(tensor_cores, kilobytes * 1024)):
        table = torch.empty(1, 1, dtype=dtype).expand(1, 3 * h)
        assert backend.frozen.unsupported(table, holds) == []
        assert f"holds {holds} or less" in backend.frozen.unsupported(table, holds + 1)[0]
        if holds:
            call = FrozenCall.draw(((holds // 2, 3), (holds // 2, 2)), h, dtype)
            found, truth = backend.frozen.sums(*call, holds), call.truth()
            assert (found - truth).norm() <= FROZEN_BUDGETS[arithmetic] * truth.norm()
