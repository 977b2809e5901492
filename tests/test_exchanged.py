"""Models of which something was exchanged: the fast ways step aside, and nothing is frozen that would be lost."""

import copy

import pytest
import torch
from coalign.model.mlp import mlp
from test_inference import PAIRS, model
from torch import nn
from torch.autograd import forward_ad
from torch.func import functional_call, grad, jvp, vmap
from torch.nn import functional as F
from torch.nn.utils import parametrizations

from coalign import DecomposableAttention, PairBatch


class Doubled(nn.Linear):
    def forward(self, input):
        return 2 * super().forward(input)


class Added(nn.Module):
    """A low-rank addition to a layer, as adapters make it."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer
        self.down = nn.Linear(layer.in_features, 2, bias=False)
        self.up = nn.Linear(2, layer.out_features, bias=False)

    @property
    def weight(self):
        return self.layer.weight

    def forward(self, x):
        return self.layer(x) + self.up(self.down(x))


def sequential(of):
    """d2l's own network in the place of ours."""
    return nn.Sequential(*of)


def twice(module, inputs, output):
    return 2 * output if isinstance(output, torch.Tensor) else tuple(2 * o for o in output)


def computed(layer):
    weight = layer.weight.detach().clone()
    del layer.weight
    layer.weight = 3 * weight


CHANGES = {
    "classifier of another class": lambda m: setattr(m.aggregate, "linear", Doubled(20, 3)),
    "classifier with an addition": lambda m: setattr(m.aggregate, "linear", Added(m.aggregate.linear)),
    "classifier without a bias": lambda m: setattr(m.aggregate, "linear", nn.Linear(20, 3, bias=False)),
    "classifier's weight computed": lambda m: computed(m.aggregate.linear),
    "classifier parametrized": lambda m: parametrizations.weight_norm(m.aggregate.linear),
    "classifier's own forward": lambda m: setattr(m.aggregate.linear, "forward", lambda x: x[:, :3]),
    "classifier hooked": lambda m: m.aggregate.linear.register_forward_hook(twice),
    "compare hooked": lambda m: m.compare.register_forward_hook(twice),
    "g hooked": lambda m: m.compare.g.register_forward_hook(twice),
    "g's layer's own forward": lambda m: setattr(m.compare.g[4], "forward", lambda x: -x),
    "g a Sequential": lambda m: setattr(m.compare, "g", sequential(m.compare.g)),
    "embedding hooked": lambda m: m.embedding.register_forward_hook(twice),
    "embedding with max_norm": lambda m: setattr(m.embedding, "max_norm", 0.5),
    "projection with a bias": lambda m: setattr(m, "projection", nn.Linear(12, 9)),
    "projection with an addition": lambda m: setattr(m, "projection", Added(m.projection)),
}


@pytest.mark.parametrize("name", CHANGES)
def test_what_was_exchanged_is_used_and_is_not_frozen(name):
    torch.manual_seed(1)
    of = model(projection=9, dtype=torch.float64).float()
    before = of(PAIRS)
    CHANGES[name](of)
    plain = copy.deepcopy(of)
    plain.backend = "reference"
    expected = plain(PAIRS)
    if name not in ("classifier parametrized", "g a Sequential"):
        assert not torch.allclose(expected, before, atol=1e-3)
    padded, lengths = PAIRS.padded(0), (PAIRS.lengths_a, PAIRS.lengths_b)
    with torch.no_grad():
        assert torch.allclose(of(PAIRS), expected, atol=1e-5)
        assert torch.allclose(of(padded, lengths=lengths), expected, atol=1e-5)
    with pytest.raises(TypeError, match="exchanged layers or hooks can't be frozen"):
        of.freeze()


@pytest.mark.parametrize("hidden", [4, 8, 30])
@pytest.mark.parametrize("part", ["aggregate", "compare", "attend"])
def test_parts_of_other_sizes(part, hidden):
    """The inference kernel takes the sizes of the constructor for granted."""
    of = model()
    other = DecomposableAttention.from_sizes(60, 12, hidden, padding_idx=1).eval()
    if part == "aggregate":
        of.aggregate = other.aggregate
        of.aggregate.h[1] = nn.Linear(40, hidden)
    elif part == "compare":
        of.compare, of.aggregate.h[1] = other.compare, nn.Linear(2 * hidden, 20)
    else:
        of.attend = other.attend
    plain = copy.deepcopy(of)
    plain.backend = "reference"
    with torch.no_grad():
        assert torch.allclose(of(PAIRS), plain(PAIRS), atol=1e-5)


def test_another_number_of_classes():
    of = model()
    of.aggregate.linear.weight = nn.Parameter(torch.randn(20, 20))
    of.aggregate.linear.bias = nn.Parameter(torch.randn(20))
    with torch.no_grad():
        found = of(PAIRS)
    assert torch.allclose(found, of(PAIRS), atol=1e-5)


def test_gradients_reach_what_was_put_in():
    of = model(projection=9).requires_grad_(False)
    of.projection = Added(of.projection)
    of(PAIRS).sum().backward()
    assert of.projection.up.weight.grad.abs().max() > 0


class Scaled(torch.Tensor):
    """Whole numbers and a factor, which only F.linear understands: as quantised weights are."""

    @staticmethod
    def __new__(cls, numbers, factor):
        return torch.Tensor._make_wrapper_subclass(cls, numbers.shape, dtype=torch.float32, requires_grad=False)

    def __init__(self, numbers, factor):
        self.numbers, self.factor = numbers, factor

    @classmethod
    def __torch_function__(cls, function, types, args=(), options=None):
        if function is F.linear:
            return F.linear(args[0], args[1].numbers.float() * args[1].factor, args[2])
        with torch._C.DisableTorchFunctionSubclass():
            return function(*args, **(options or {}))

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), options=None):
        if function in (torch.ops.aten.detach.default, torch.ops.aten.alias.default):
            return cls(args[0].numbers, args[0].factor)
        raise NotImplementedError(function)


@pytest.mark.parametrize("kind", ["scaled", "sparse"])
@pytest.mark.parametrize("name", ["attend.f.1", "compare.g.4", "aggregate.h.1", "aggregate.linear"])
def test_weights_that_are_no_plain_tensors(name, kind):
    of = model().requires_grad_(False)
    layer = of.get_submodule(name)
    numbers = (layer.weight * 50).round()
    layer.weight.copy_(numbers / 50)
    expected = of(PAIRS)
    weight = Scaled(numbers.to(torch.int8), 1 / 50) if kind == "scaled" else layer.weight.to_sparse_csr()
    layer.weight = nn.Parameter(weight, requires_grad=False)
    assert torch.allclose(of(PAIRS), expected, atol=1e-5)


@pytest.mark.parametrize("shape", [(60,), (60, 12, 2)])
def test_an_embedding_that_is_none(shape):
    of = model().requires_grad_(False)
    of.embedding.weight = nn.Parameter(torch.randn(shape), requires_grad=False)
    with pytest.raises((RuntimeError, IndexError), match=r"2-D|Dimension out of range"):
        of(PAIRS)


@pytest.mark.parametrize("part", ["attend", "compare", "aggregate"])
def test_parts_of_ones_own(part):
    class Own(nn.Module):
        def __init__(self, part):
            super().__init__()
            self.part = part

        def forward(self, *inputs, **given):
            return self.part(*inputs, **given)

    of = model()
    expected = of(PAIRS)
    setattr(of, part, Own(getattr(of, part)))
    assert torch.allclose(of(PAIRS), expected, atol=1e-5)
    of.backend = "native"
    assert of.backend == "native"


@pytest.mark.parametrize("grads", [True, False], ids=["with gradients", "without"])
def test_tangents(grads):
    of = model(dtype=torch.float64).float()
    scores = []
    for backend in (None, "reference"):
        of.backend = backend
        with forward_ad.dual_level(), torch.set_grad_enabled(grads):
            weights = {"compare.g.4.weight": forward_ad.make_dual(of.compare.g[4].weight, torch.ones(20, 20))}
            scores.append(forward_ad.unpack_dual(functional_call(of, weights, (PAIRS,))).tangent)
    assert scores[0].abs().max() > 0
    assert torch.allclose(*scores, rtol=1e-4, atol=1e-5)


def test_gradients_of_each_pair():
    of = model()
    premises, hypotheses = PairBatch.from_lists([[3, 4, 5], [6, 7, 1]], [[8, 9], [10, 1]]).padded(1)
    parameters = dict(of.named_parameters())

    def score(parameters, a, b):
        return functional_call(of, parameters, ((a[None], b[None]),)).square().sum()

    found = vmap(grad(score), (None, 0, 0))(parameters, premises, hypotheses)
    for pair in range(2):
        expected = grad(score)(parameters, premises[pair], hypotheses[pair])
        for name, one in expected.items():
            assert torch.allclose(found[name][pair], one, rtol=1e-4, atol=1e-5), name
    whole = grad(lambda p: functional_call(of, p, (PAIRS,)).square().sum())(parameters)
    leaves = [p.detach().requires_grad_() for p in parameters.values()]
    scores = functional_call(of, dict(zip(parameters, leaves, strict=True)), (PAIRS,))
    for one, other in zip(torch.autograd.grad(scores.square().sum(), leaves), whole.values(), strict=True):
        assert (one - other).norm() <= 1e-5 * other.norm()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("p", [0.0, 0.5])
def test_what_arrives_may_be_several_and_have_tangents(p, dtype):
    """A network's gradient is linear in what arrives: its tangent is what the tangent's own gradient is."""
    network = mlp(14, 12, flatten=False, dropout=p).to(dtype)
    inputs = [torch.randn(9, width, dtype=dtype, requires_grad=True) for width in (8, 6)]
    y, leaves = network(*inputs), [*inputs, *network.parameters()]
    arriving = torch.randn(3, *y.shape, dtype=dtype)

    def gradients(arrived):
        return torch.autograd.grad(y, leaves, arrived, retain_graph=True)

    expected = [gradients(arrived) for arrived in arriving]
    _, pushed = jvp(gradients, (arriving[0],), (arriving[1],))
    with forward_ad.dual_level():
        duals = gradients(forward_ad.make_dual(arriving[0], arriving[1]))
        tangents = [forward_ad.unpack_dual(t).tangent for t in duals]
    for k, mapped in enumerate(vmap(gradients)(arriving)):
        assert torch.allclose(mapped, torch.stack([one[k] for one in expected]), rtol=1e-4, atol=1e-5)
        assert torch.allclose(pushed[k], expected[1][k], rtol=1e-4, atol=1e-5)
        assert torch.allclose(tangents[k], expected[1][k], rtol=1e-4, atol=1e-5)


def halved(module, inputs):
    return 0.5 * inputs[0], *inputs[1:]


@pytest.mark.parametrize("changed", ["hook", "patched", "derived"])
def test_g_has_one_input_for_whoever_looks(changed):
    """[A; beta] together, as in the book, and not A and beta."""
    of = model()
    g = of.compare.g
    if changed == "hook":
        g.register_forward_pre_hook(halved)
    elif changed == "patched":
        own = g.forward
        g.forward = lambda x: own(0.5 * x)
    else:

        class Halving(type(g)):
            def forward(self, x):
                return super().forward(0.5 * x)

        of.compare.g = Halving(*g)
    found = of(PAIRS)
    half = model()
    with torch.no_grad():
        half.compare.g[1].weight.mul_(0.5)
    torch.testing.assert_close(found, half(PAIRS))


class Neighbours(nn.Module):
    """A network that looks at the words beside each word, of whatever width."""

    def __init__(self, width):
        super().__init__()
        self.convolution = nn.LazyConv1d(width, 3, padding=1)

    def forward(self, x):
        return self.convolution(x.mT).mT.relu()


@pytest.mark.parametrize(
    ("part", "name", "width"),
    [("attend", "f", 20), ("compare", "g", 20), ("intra_attention", "f", 20), (None, "projection", 9)],
)
def test_networks_that_look_at_neighbours_see_sentences(part, name, width):
    """And not a packed batch, in which the next word is another sentence's."""
    of = model(projection=9, intra_attention=part == "intra_attention")
    setattr(of if part is None else getattr(of, part), name, Neighbours(width))
    X = PAIRS.padded(1)
    with torch.no_grad():
        found = of(X)
        of.backend = "reference"
        torch.testing.assert_close(found, of(X))


@pytest.mark.parametrize("name", ["attend.f.1", "compare.g.2", "intra_attention.f.1"])
def test_hooks_inside_a_network_see_sentences(name):
    of, seen = model(intra_attention=True), {}
    of.get_submodule(name).register_forward_hook(lambda layer, given, y: seen.setdefault(of.backend, []).append(y))
    for backend in (None, "reference"):
        of.backend = backend
        of(PAIRS.padded(1))
    assert {y.shape for y in seen[None]} == {y.shape for y in seen["reference"]}


def test_an_embedding_put_in_keeps_the_padding():
    of, X = model(), (torch.tensor([[5, 6, 1, 1]]), torch.tensor([[7, 1, 1, 1]]))
    expected = of(X)
    of.embedding = nn.Embedding.from_pretrained(of.embedding.weight.detach())
    assert of.padding_idx == 1
    torch.testing.assert_close(of(X), expected)
    of.embedding = nn.Sequential(of.embedding, nn.Tanh())  # without a weight of its own
    for backend in (None, "reference"):
        of.backend = backend
        torch.testing.assert_close(of(X), of(PairBatch.from_lists([[5, 6]], [[7]])))


@pytest.mark.parametrize("given", ["packed", "padded"])
def test_gradients_scaled_by_frequency(given):
    """How often a word is there counts one look-up at a time, a side's."""
    X = PairBatch.from_lists([[5, 5, 6]], [[5, 7]]) if given == "packed" else (
        torch.tensor([[5, 5, 6, 1]]), torch.tensor([[5, 7, 1, 1]])
    )  # fmt: skip
    gradients = []
    for backend in (None, "reference"):
        of = model()
        of.backend, of.embedding.scale_grad_by_freq = backend, True
        of(X).sum().backward()
        gradients.append(of.embedding.weight.grad)
    torch.testing.assert_close(*gradients)


def test_a_model_without_memory():
    """On the meta device, to be given its numbers by load_state_dict(assign=True)."""
    with torch.device("meta"):
        skeleton = DecomposableAttention.from_sizes(60, 12, 20).freeze()
    whole = DecomposableAttention.from_sizes(60, 12, 20).eval().freeze()
    skeleton.load_state_dict(whole.state_dict(), assign=True)
    batch = PairBatch.from_lists([[5, 2, 7], [9]], [[2], [6, 3, 9]])
    assert torch.equal(skeleton(batch), whole(batch))


class Sharded(torch.nn.Parameter):
    pass


def test_parameters_that_are_no_plain_tensors_are_refused():
    of = DecomposableAttention.from_sizes(60, 12, 20)
    of.embedding.weight = Sharded(of.embedding.weight.detach())
    with pytest.raises(TypeError, match=r"embedding\.weight is a Sharded; gather it"):
        of.freeze()
