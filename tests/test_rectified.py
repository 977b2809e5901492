"""Layers whose inputs ReLU and dropout have made 0 in many places: the same numbers, and only the others multiplied."""

import pytest
import torch
from coalign.model.mlp import layer_by_layer, mlp
from test_mlp import parameters

from coalign import DecomposableAttention, PairBatch

SIZES = [(1, 3, 0, 4), (2, 20, 0, 17), (95, 7, 5, 33), (97, 100, 0, 200), (191, 100, 100, 200), (400, 30, 20, 300)]
SHIFTS = (-2.75, -2.0, -1.25, 8.0)  # of sixteenths


def whole(shape, most, seed):
    """Whole numbers: sums of their products are exact in float32, in any order, and no unit is open by error."""
    return torch.randint(-most, most + 1, shape, generator=torch.Generator().manual_seed(seed)).float()


def network(width, hiddens, shift):
    """Whose units are open the more seldom, the lower its biases are."""
    made = mlp(width, hiddens, flatten=False, dropout=0.0)
    with torch.no_grad():
        for seed, layer in enumerate((made[1], made[4])):
            layer.weight.copy_(whole(layer.weight.shape, 4, seed) / 16)
            layer.bias.copy_(whole(layer.bias.shape, 4, seed + 2) / 16 + shift)
    return made


def inputs(rows, *widths):
    return [whole((rows, width), 2, 4).requires_grad_() if width else None for width in widths]


def gradients(y, operands):
    weights = whole(y.shape, 2, 5).to(y.dtype)
    return torch.autograd.grad((y * weights).sum(), [t for t in operands if t is not None])


@pytest.mark.parametrize("shift", SHIFTS)
@pytest.mark.parametrize(("rows", "width", "width2", "hiddens"), SIZES)
def test_however_many_are_zero(rows, width, width2, hiddens, shift, poisoned_memory):
    of, (x, x2) = network(width + width2, hiddens, shift), inputs(rows, width, width2)
    assert of._fused(x, x2) == 0
    operands = (x, x2, *parameters(of))
    wide = [t if t is None else t.detach().double().requires_grad_() for t in operands]
    y, truth = of(x, x2), layer_by_layer(*wide, 0.0, 0)
    for found, exact in zip((y, *gradients(y, operands)), (truth, *gradients(truth, wide)), strict=True):
        assert torch.equal(found.double(), exact)


def test_shares_that_are_zero_are_as_many_as_meant():
    """The test above has layers of all kinds: next to no open units, few, some, and most."""
    (x,) = inputs(97, 100)
    shares = [float((network(100, 200, shift)(x) > 0).float().mean()) for shift in SHIFTS]
    assert 0 < shares[0] < 0.05 < shares[1] < 0.2 < shares[2] < 0.4
    assert shares[3] > 0.65


@pytest.mark.parametrize("hiddens", [33, 200, 300])
def test_bits_do_not_depend_on_how_many_are_zero_in_other_rows(hiddens):
    """Rows with few numbers pass alone, or in the company of rows that have all of theirs: every number is multiplied
    then."""
    torch.manual_seed(0)
    of = mlp(20, hiddens, flatten=False, dropout=0.0)
    with torch.no_grad():
        of[1].weight[:, 0] = of[4].weight[:, 0] = 10.0
        of[1].bias -= 0.7
        of[4].bias -= 0.7
        few = inputs(24, 20)[0].detach()
        few[:, 0] = 0
        all_of_them = inputs(70, 20)[0].detach().flip(0)
        all_of_them[:, 0] = 10
    found = []
    for x in (few, torch.cat([few, all_of_them])):
        x = x.clone().requires_grad_()
        y = of(x)
        (dx,) = torch.autograd.grad(y[: len(few)].square().sum() + y[len(few) :].sum(), x)
        found.append((y[: len(few)], dx[: len(few)]))
        shares = (y[: len(few)] > 0).float().mean(), (y[len(few) :] > 0).float().mean()
    assert 0.05 < shares[0] < 0.5
    assert shares[1] > 0.9
    for alone, beside in zip(*found, strict=True):
        assert torch.equal(alone, beside)


@pytest.mark.parametrize("value", [torch.inf, torch.nan])
def test_zero_times_what_is_not_finite(value):
    """Is NaN, as in PyTorch's layers, though 0 times any number is left out."""
    for layer in (1, 4):
        of = network(20, 40, -0.3)
        with torch.no_grad():
            of[layer].weight[3, 5] = value
        (x,) = inputs(50, 20)
        plain = layer_by_layer(x, None, *parameters(of), 0.0, 0)
        y = of(x)
        assert torch.equal(y.isnan(), plain.isnan())
        assert not plain.isfinite().all()
        for found, truth in zip(gradients(y, (x,)), gradients(plain, (x,)), strict=True):
            assert torch.equal(found.isnan(), truth.isnan())
    of, (x,) = network(20, 40, -0.3), inputs(50, 20)
    x = x.detach()
    x[7, 3] = value
    x.requires_grad_()
    y, plain = of(x), layer_by_layer(x, None, *parameters(of), 0.0, 0)
    for found, truth in zip(
        (y, *gradients(y, parameters(of))), (plain, *gradients(plain, parameters(of))), strict=True
    ):
        assert torch.equal(found.isnan(), truth.isnan())


@pytest.mark.parametrize("shift", [-0.6, 3.0])
def test_frozen_and_not_with_few_open_units_and_with_all(shift):
    torch.manual_seed(0)
    model = DecomposableAttention.from_sizes(50, 24, 40).eval()
    with torch.no_grad():
        for layer in (model.attend.f[1], model.compare.g[1]):
            layer.bias += shift
    draw = torch.Generator().manual_seed(0)
    lists = [[torch.randint(50, (int(n),), generator=draw).tolist() for n in range(40)] for _ in range(2)]
    batch = PairBatch.from_lists(lists[0], lists[1][::-1])
    plain = model.double()
    plain.backend = "reference"
    with torch.no_grad():
        truth = plain(batch)
        model.float().backend = None
        for found in (model(batch), model.freeze()(batch)):
            assert (found - truth).norm() <= 1e-5 * truth.norm()
