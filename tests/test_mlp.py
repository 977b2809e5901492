"""The feed-forward network as one kernel against its layers one by one, with the same numbers dropped."""

import copy

import pytest
import torch
from coalign.kernels.native import mlp as native
from coalign.model.dropout import draw_seed
from coalign.model.mlp import layer_by_layer, mlp
from torch import nn
from torch.autograd import forward_ad
from torch.utils.checkpoint import checkpoint

from coalign import DecomposableAttention, PairBatch


def network(width, hiddens, p=0.0, flatten=False):
    torch.manual_seed(0)
    return mlp(width, hiddens, flatten=flatten, dropout=p)


def inputs(rows, width, width2):
    torch.manual_seed(1)
    x = torch.randn(rows, width, requires_grad=True)
    return x, torch.randn(rows, width2, requires_grad=True) if width2 else None


def gradients(y, operands):
    weights = torch.linspace(-1, 1, y.numel(), dtype=y.dtype).reshape(y.shape)
    return torch.autograd.grad((y * weights).sum(), [t for t in operands if t is not None])


def parameters(of):
    linears = [layer for layer in of if isinstance(layer, nn.Linear)]
    return [t for layer in linears for t in (layer.weight, layer.bias)]


SIZES = [
    (0, 3, 0, 4),
    (1, 1, 0, 1),
    (1, 100, 100, 200),
    (5, 16, 0, 16),
    (6, 7, 5, 33),
    (97, 100, 0, 200),
    (191, 100, 100, 200),
    (1700, 30, 20, 65),
]


@pytest.mark.parametrize("p", [0.0, 0.2])
@pytest.mark.parametrize(("rows", "width", "width2", "hiddens"), SIZES)
def test_one_kernel_is_the_layers_one_by_one(rows, width, width2, hiddens, p, poisoned_memory):
    of = network(width + width2, hiddens, p)
    x, x2 = inputs(rows, width, width2)
    assert of._fused(x, x2) == p  # the kernel does serve this
    torch.manual_seed(2)
    y = of(x, x2)
    torch.manual_seed(2)
    seed = draw_seed()
    if rows > 5 and p:
        assert not torch.equal(y, of(x, x2))
    wide = [t if t is None else t.detach().double().requires_grad_() for t in (x, x2, *parameters(of))]
    truth = layer_by_layer(*wide, p, seed)
    for found, expected in zip(
        (y, *gradients(y, (x, x2, *parameters(of)))), (truth, *gradients(truth, wide)), strict=True
    ):
        assert found.shape == expected.shape
        assert (found - expected).norm() <= 1e-5 * expected.norm()
    assert rows < 5 or truth.norm() > 0
    with torch.no_grad():
        torch.manual_seed(2)
        assert torch.equal(of(x, x2), y)  # nothing is saved then, nothing else differs


@pytest.mark.parametrize("p", [0.0, 0.2])
@pytest.mark.parametrize(("rows", "width", "width2", "hiddens"), SIZES[1:])
def test_half_precision_without_gradients(rows, width, width2, hiddens, p, poisoned_memory):
    """Within twice the error of the layers one by one in bfloat16, or one rounding of the result."""
    of = network(width + width2, hiddens, p).bfloat16()
    x, x2 = (t if t is None else t.detach().bfloat16() for t in inputs(rows, width, width2))
    with torch.no_grad():
        assert of._fused(x, x2) == p
        torch.manual_seed(2)
        found = of(x, x2)
        torch.manual_seed(2)
        seed = draw_seed()
        operands = (x, x2, *parameters(of))
        plain = layer_by_layer(*operands, p, seed)
        truth = layer_by_layer(*(t if t is None else t.double() for t in operands), p, seed)
    assert found.dtype == torch.bfloat16
    error, plains = ((t.double() - truth).norm() for t in (found, plain))
    assert error <= max(2 * plains, 4e-3 * truth.norm())


@pytest.mark.parametrize("p", [0.0, 0.2])
@pytest.mark.parametrize(("rows", "width", "width2", "hiddens"), SIZES[1:])
def test_autocast_trains_in_half_precision(rows, width, width2, hiddens, p, poisoned_memory):
    """Outputs and gradients within twice the error of the layers one by one in bfloat16, or one rounding."""
    of = network(width + width2, hiddens, p)
    x, x2 = inputs(rows, width, width2)
    with torch.autocast("cpu", torch.bfloat16):
        assert of._fused(x, x2) == p
        torch.manual_seed(2)
        y = of(x, None if x2 is None else x2.bfloat16())  # as what the alignment gives is
    found = (y, *gradients(y, (x, x2, *parameters(of))))
    assert [t.dtype for t in found] == [torch.bfloat16] + [torch.float32] * (len(found) - 1)
    torch.manual_seed(2)
    seed = draw_seed()

    def one_by_one(dtype):
        operands = [t if t is None else t.detach().to(dtype).requires_grad_() for t in (x, x2)]
        weights = [t.detach().bfloat16().to(dtype).requires_grad_() for t in parameters(of)]
        y = layer_by_layer(*operands, *weights, p, seed)
        return y, *gradients(y, (*operands, *weights))

    wide = [t if t is None else t.detach().bfloat16().double().requires_grad_() for t in (x, x2, *parameters(of))]
    y = layer_by_layer(*wide, p, seed)
    for f, plain, truth in zip(found, one_by_one(torch.bfloat16), (y, *gradients(y, wide)), strict=True):
        error, plains = ((t.double() - truth).norm() for t in (f, plain))
        assert error <= max(2 * plains, 4e-3 * truth.norm())
    assert rows < 5 or truth.norm() > 0


def test_autocast_has_second_derivatives_and_the_same_bits_on_all_threads():
    of = network(100, 200, 0.2)
    x, _ = inputs(1700, 100, 0)

    def run():
        with torch.autocast("cpu", torch.bfloat16):
            y = of(x)
        return y, *gradients(y, (x, *parameters(of)))

    assert_same_on_all_threads(run, (1, 2, 5))
    with torch.autocast("cpu", torch.bfloat16):
        (grad,) = torch.autograd.grad(of(x).float().square().sum(), x, create_graph=True)
    (second,) = torch.autograd.grad(grad.square().sum(), of[1].weight)
    assert second.norm() > 0


def test_other_autocasts_and_mixtures_go_layer_by_layer():
    of = network(12, 16)
    x = torch.randn(5, 12)
    with torch.autocast("cpu", torch.float16):
        assert of._fused(x, None) is None
    assert of._fused(x[:, :6], x[:, 6:].bfloat16()) is None
    assert of._fused(x.bfloat16(), None) is None
    with torch.autocast("cpu", torch.bfloat16):
        assert of.bfloat16()._fused(x, None) is None


@pytest.mark.parametrize("p", [0.0, 0.3])
def test_only_what_needs_a_gradient_gets_one(p):
    of = network(30, 40, p)
    x, x2 = inputs(50, 10, 20)
    torch.manual_seed(3)
    expected = gradients(of(x, x2), (x, x2, *parameters(of)))
    torch.manual_seed(3)
    (found,) = gradients(of(x.detach(), x2), (x2,))
    assert torch.equal(found, expected[1])
    torch.manual_seed(3)
    found = gradients(of(x.detach(), x2.detach()), parameters(of))
    assert all(map(torch.equal, found, expected[2:]))


@pytest.mark.parametrize("p", [0.0, 0.3])
def test_second_derivatives(p):
    of = network(12, 16, p)
    x, _ = inputs(9, 12, 0)

    def penalty(y):
        (grad,) = torch.autograd.grad((y**2).sum(), x, create_graph=True)
        return torch.autograd.grad((grad**2).sum(), [x, *parameters(of)])

    torch.manual_seed(4)
    found = penalty(of(x))
    torch.manual_seed(4)
    expected = penalty(layer_by_layer(x, None, *parameters(of), p, draw_seed() if p else 0))
    for f, e in zip(found, expected, strict=True):
        assert e.norm() > 0
        assert (f - e).norm() <= 1e-4 * e.norm()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("width", "hiddens"), [(100, 200), (16, 24), (7, 9), (1, 1)])
def test_bits_do_not_depend_on_sizes_of_batches(width, hiddens, dtype):
    """Few rows pass the weights as they lie, many pass packed ones."""
    of = network(width, hiddens, 0.0).to(dtype)
    x = inputs(300, width, 0)[0].detach().to(dtype)
    with torch.no_grad():
        expected = of(x)
        for rows in (1, 2, 5, 8, 15, 17, 33, 63, 95, 96, 97, 200):
            assert torch.equal(of(x[:rows]), expected[:rows])


def test_bits_do_not_depend_on_threads():
    of = network(100, 200, 0.2)
    x, _ = inputs(3001, 100, 0)

    def run():
        y = of(x)
        return y, *gradients(y, (x, *parameters(of)))

    assert_same_on_all_threads(run, (1, 2, 5, 16))


def assert_same_on_all_threads(run, counts):
    before, found = torch.get_num_threads(), []
    try:
        for threads in counts:
            torch.set_num_threads(threads)
            torch.manual_seed(5)
            found.append(run())
    finally:
        torch.set_num_threads(before)
    for other in found[1:]:
        assert all(map(torch.equal, other, found[0]))


def test_more_dimensions_strides_and_flatten():
    of, x = network(12, 16), torch.randn(4, 5, 24)[..., ::2]
    expected = of(x.contiguous().reshape(20, 12)).reshape(4, 5, 16)
    assert torch.equal(of(x), expected)
    torch.testing.assert_close(of.double()(*x.double().split((5, 7), -1)).float(), expected)  # layer by layer
    flat = network(12, 16, flatten=True)
    assert list(flat.state_dict()) == ["1.weight", "1.bias", "5.weight", "5.bias"]
    torch.testing.assert_close(flat(x[0]), expected[0])


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
def test_recomputed_activations_are_the_same(dtype, reentrant):
    """Reentrant, they are made without gradients first: the same numbers must be dropped with them."""
    of = network(12, 16, 0.5).to(dtype)
    x = inputs(9, 12, 0)[0].detach().to(dtype).requires_grad_()

    def found(forward):
        torch.manual_seed(1)
        y = forward(x)
        (y * torch.linspace(-1, 1, y.numel(), dtype=dtype).reshape(y.shape)).sum().backward()
        grads = [t.grad.clone() for t in (x, *parameters(of))]
        for t in (x, *parameters(of)):
            t.grad = None
        return grads

    expected = found(of)
    assert all(map(torch.equal, found(lambda x: checkpoint(of, x, use_reentrant=reentrant)), expected))
    torch.manual_seed(1)
    recorded = of(x).detach()
    torch.manual_seed(1)
    with torch.no_grad():
        torch.testing.assert_close(of(x), recorded, rtol=2e-2 if dtype == torch.bfloat16 else 1e-6, atol=1e-2)


@pytest.mark.parametrize("p", [0.0, 0.5])
def test_saved_activations_that_come_back_otherwise_laid_out(p):
    of = network(12, 16, p)
    x = inputs(9, 12, 0)[0]

    def found():
        torch.manual_seed(1)
        return gradients(of(x), (x, *parameters(of)))

    expected = found()
    with torch.autograd.graph.saved_tensors_hooks(lambda t: t.t().contiguous(), lambda t: t.t()):
        assert all(map(torch.equal, found(), expected))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)  # one kernel, or layer by layer
def test_zeros_that_have_no_memory_arrive(dtype):
    of = network(12, 16, 0.5).to(dtype)
    x = inputs(90, 12, 0)[0].detach().to(dtype).requires_grad_()
    y = of(x)
    for t in torch.autograd.grad(y, (x, *parameters(of)), torch._efficientzerotensor(y.shape, dtype=dtype)):
        assert torch.equal(t, torch.zeros_like(t))


def test_gradients_to_be_differentiated_again_where_one_input_is_made_of_the_other():
    of = network(24, 16)
    x = inputs(9, 12, 0)[0].detach().requires_grad_()
    once, again = (torch.autograd.grad(of(x, x.tanh()).sin().sum(), x, create_graph=c)[0] for c in (False, True))
    assert (once - again).norm() <= 1e-5 * once.norm()


def test_a_change_of_the_layers_is_obeyed():
    """Hooks are called, exchanged layers used, modes of single layers kept."""
    x, _ = inputs(9, 12, 0)
    of = network(12, 16)
    plain = of(x)
    seen = []
    handle = of[2].register_forward_hook(lambda module, args, output: seen.append(output))
    torch.testing.assert_close(of(x), plain)
    assert len(seen) == 1
    handle.remove()
    of[2] = nn.Tanh()
    assert not torch.allclose(of(x), plain, rtol=0.1)
    of = network(12, 16, 0.9)
    of[0].eval()  # the second dropout alone stays on
    assert of._fused(x, None) is None
    of[3].eval()
    torch.testing.assert_close(of(x), plain)
    assert of._fused(x, None) == 0


def test_wrong_widths_are_torchs_errors():
    of = network(12, 16)
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        of(torch.randn(3, 11))
    with pytest.raises(RuntimeError):
        of(torch.randn(3, 6), torch.randn(4, 6))


@pytest.mark.parametrize("at", [1, 4])
def test_biases_of_other_sizes_are_torchs_to_judge(at):
    of, x = network(12, 16), torch.randn(3, 12)
    of[at].bias = nn.Parameter(torch.ones(1))  # which torch broadcasts
    assert of._fused(x, None) is None
    torch.testing.assert_close(of(x), nn.Sequential(*of)(x))
    for size in (7, 17):
        of[at].bias = nn.Parameter(torch.ones(size))
        with pytest.raises(RuntimeError, match="must match the existing size"):
            of(x)


@pytest.mark.parametrize("grad", [False, True])
def test_forward_derivatives(grad):
    """The kernel has none: tangents must neither be lost nor be an error."""
    of = network(12, 16)
    x, tangent = torch.randn(5, 12), torch.randn(5, 12)
    with torch.set_grad_enabled(grad), forward_ad.dual_level():
        found = forward_ad.unpack_dual(of(forward_ad.make_dual(x, tangent))).tangent
    moved = [of.double()(x.double() + step * tangent) for step in (-1e-6, 1e-6)]
    torch.testing.assert_close(found.double(), (moved[1] - moved[0]) / 2e-6, rtol=1e-4, atol=1e-5)


def test_a_default_device_is_not_where_seeds_come_from():
    of, x = network(12, 16, 0.5), torch.randn(5, 12)
    with torch.device("meta"):
        assert of(x).device.type == "cpu"


def test_nan_passes_through():
    of, x = network(12, 16), torch.randn(20, 12)
    x[7, 3] = float("nan")
    hit = of(x).isnan().any(1)
    assert hit[7]
    assert hit.sum() == 1


def test_a_trained_model_frozen_in_half_precision_decides_alike():
    """Trained by the fused kernels, on pairs whose label is whether they share a word."""
    generator = torch.Generator().manual_seed(0)
    lists = [torch.randint(2, 200, (4000, 6), generator=generator).tolist() for _ in range(2)]
    for a, b in list(zip(*lists, strict=True))[::2]:
        b[3] = a[2]
    labels = torch.tensor([int(bool(set(a) & set(b))) for a, b in zip(*lists, strict=True)])
    torch.manual_seed(0)
    of = DecomposableAttention.from_sizes(200, 32, 64, num_classes=2, padding_idx=1)
    optimizer = torch.optim.Adam(of.parameters(), lr=3e-3)
    for _ in range(12):
        order = torch.randperm(4000, generator=generator)
        for chosen in order.split(100):
            pairs = PairBatch.from_lists(*([side[i] for i in chosen.tolist()] for side in lists))
            optimizer.zero_grad()
            nn.functional.cross_entropy(of(pairs), labels[chosen]).backward()
            optimizer.step()
    pairs = PairBatch.from_lists(*lists)
    of.eval()
    decided = of(pairs).argmax(1)
    assert (decided == labels).float().mean() > 0.95
    assert (of.freeze()(pairs).argmax(1) == decided).float().mean() > 0.9995
    assert (of.freeze(torch.bfloat16)(pairs).argmax(1) == decided).float().mean() >= 0.995
    assert (copy.deepcopy(of).bfloat16().freeze(torch.bfloat16)(pairs).argmax(1) == decided).float().mean() >= 0.99


@pytest.mark.parametrize("positive", [False, True])
def test_wide_layers_are_summed_in_short_chains(positive):
    """With at most twice plain PyTorch's error, however wide."""
    torch.manual_seed(0)
    x, w = torch.randn(200, 4096), torch.randn(64, 4096)
    if positive:
        x, w = x.abs(), w.abs()
    zero, one = torch.zeros(64), torch.eye(64)
    found, _ = native.forward(x, None, w, zero, one, zero, 0.0, 0, False)
    truth = torch.relu(x.double() @ w.double().T)
    errors = [(t.double() - truth).norm() for t in (found, torch.relu(x @ w.T))]
    assert errors[0] <= 2 * errors[1]


@pytest.mark.parametrize("hiddens", [5, 6, 17])
def test_an_infinite_gradient_stays_what_it_is(hiddens):
    """Beside an odd number of hidden ones in pairs of bfloat16 nothing stands that it could make NaN."""
    torch.manual_seed(0)
    x, w1, w2 = (torch.rand(*size).bfloat16() + 0.1 for size in ((3, 4), (hiddens, 4), (hiddens, hiddens)))
    zero = torch.zeros(hiddens)
    y, hidden = native.forward(x, None, w1, zero, w2, zero, 0.0, 0, True)
    dy = torch.ones_like(y)
    dy[1, 0] = torch.inf
    dx = native.backward(dy, y, hidden, x, None, w1.float(), w2.float(), 0.0, 0, True, False)[0]
    assert (dx[1] == torch.inf).all()
    assert dx[[0, 2]].isfinite().all()
