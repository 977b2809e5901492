"""Drop-in layers against their originals' formulas (benchmarks/layer_formulas.py) on random state dicts.

Values and gradients. A formula takes parameters by the names that the original gives them: a renamed one is a KeyError.
"""

from __future__ import annotations

import re
from collections.abc import Callable

import numpy as np
import pytest
import torch
from coalign.model.layers import (
    AllenNlpDecomposableAttention,
    BidirectionalCrossAttention,
    BiMultiHeadAttention,
    CrossBlock,
    CrossGraphAttention,
    LocalInference,
    SoftmaxAttention,
)
from torch import Tensor, nn

from benchmarks.layer_formulas import (
    SIMILARITIES,
    allennlp,
    bidirectional,
    both_ways,
    cross_block,
    esim,
    graph_matching,
    grounding_dino,
)
from coalign.testing import error

M, N = 9, 7
MASK_A = torch.arange(M) < torch.tensor([9, 4, 6])[:, None]
MASK_B = torch.arange(N) < torch.tensor([2, 7, 5])[:, None]
BOTH = MASK_A[:, None, :, None] & MASK_B[:, None, None, :]


def agree(
    layer: nn.Module, formula: Callable[..., tuple[Tensor, ...]], inputs: list[Tensor], keep=(None, None)
) -> None:
    """The layer's outputs and all gradients are the formula's, to 1e-5, at the positions kept; for both backends."""
    torch.manual_seed(1)
    with torch.no_grad():
        for p in layer.parameters():
            p.copy_(torch.randn(p.shape) / p.shape[-1] ** 0.5)
    wide = {name: t.detach().double().requires_grad_() for name, t in layer.state_dict().items()}
    wide_inputs = [t.double().requires_grad_() for t in inputs]
    expected = formula(wide, *wide_inputs)
    kept = [torch.ones(t.shape[:-1]) if k is None else k for t, k in zip(expected, keep, strict=False)]
    upstream = [torch.randn(t.shape).double() * k[..., None] for t, k in zip(expected, kept, strict=True)]
    leaves = [*wide.values(), *wide_inputs]
    gradients = torch.autograd.grad(expected, leaves, upstream, allow_unused=True)
    for backend in (None, "reference"):
        layer.backend = backend
        mine = [t.clone().requires_grad_() for t in inputs]
        found = layer(*mine)
        found = (found,) if isinstance(found, Tensor) else found
        assert len(found) == len(expected)
        for one, other, k in zip(found, expected, kept, strict=True):
            assert error(one * k[..., None], other.detach() * k[..., None]) <= 1e-5
        parameters = dict(layer.named_parameters())
        mine = [*(parameters[name] for name in wide), *mine]
        upstream_here = [g.float() for g in upstream]
        for one, other in zip(torch.autograd.grad(found, mine, upstream_here), gradients, strict=True):
            assert error(one, other) <= 1e-5


def with_arguments(layer: nn.Module, **arguments) -> nn.Module:
    """The layer with some of its forward pass' arguments fixed."""
    plain = layer.forward
    layer.forward = lambda *inputs: plain(*inputs, **arguments)
    return layer


def inputs(width_a: int, width_b: int) -> list[Tensor]:
    torch.manual_seed(0)
    return [torch.randn(3, M, width_a), torch.randn(3, N, width_b)]


@pytest.mark.parametrize(
    ("layer", "widths", "masks"),
    [
        (CrossBlock(32, 4), (32, 32), ("mask", "mask0", "mask1")),
        (BidirectionalCrossAttention(dim=24, heads=2), (24, 24), ("mask", "context_mask")),
        (BiMultiHeadAttention(24, 20, 32, 2), (24, 20), ("attention_mask_v", "attention_mask_l")),
        (AllenNlpDecomposableAttention(16, 24), (16, 16), ("premise_mask", "hypothesis_mask")),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else "",
)
def test_masks_that_are_no_tensors(layer, widths, masks):
    for name in masks:
        with pytest.raises(TypeError, match=f"^{name} must be a tensor, not list"):
            layer(*inputs(*widths), **{name: [[1]]})


@pytest.mark.parametrize(
    ("layer", "names"),
    [
        (CrossBlock(32, 4), ("x0", "x1")),
        (BiMultiHeadAttention(32, 32, 16, 4), ("v", "l")),
        (BidirectionalCrossAttention(dim=32, heads=4, dim_head=8), ("x", "context")),
    ],
    ids=lambda x: type(x).__name__ if isinstance(x, torch.nn.Module) else "names",
)
def test_sequences_that_are_no_batches(layer, names):
    """Heads would be split from the wrong dimension."""
    whole = torch.ones(2, 5, 32)
    for place, name in enumerate(names):
        given = [whole, whole]
        given[place] = torch.ones(5, 32)
        with pytest.raises(ValueError, match=rf"^{name} must be \(batch, length, width\), not \(5, 32\)$"):
            layer(*given)
        given[place] = None
        with pytest.raises(TypeError, match=rf"^{name} must be a tensor, not NoneType$"):
            layer(*given)


@pytest.mark.parametrize(
    ("layer", "arguments"),
    [
        (AllenNlpDecomposableAttention(32, 24), {}),
        (AllenNlpDecomposableAttention(32, 24), {"premise_mask": MASK_A, "hypothesis_mask": MASK_B}),
        (BidirectionalCrossAttention(dim=32), {}),
        (BiMultiHeadAttention(32, 32, 32, 4), {}),
        (CrossBlock(32, 4), {}),
        (SoftmaxAttention(), {"premise_mask": MASK_A, "hypothesis_mask": MASK_B}),
        (LocalInference(), {"premise_mask": MASK_A, "hypothesis_mask": MASK_B}),
        (CrossGraphAttention(), {"graph_idx": torch.tensor([0, 1, 1]), "n_graphs": 2}),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, torch.nn.Module) else None,
)
def test_a_layer_s_backend_is_the_operator_s(layer, arguments):
    layer.backend = "no such"
    given = [torch.randn(3, 32)] if isinstance(layer, CrossGraphAttention) else inputs(32, 32)
    if isinstance(layer, SoftmaxAttention):
        arguments = dict(arguments, premise=given[0], hypothesis=given[1])
        given = []
    with pytest.raises(ValueError, match="backend='no such' is no backend"):
        layer(*given, **arguments)


def test_names_of_parameters_are_the_originals():
    both = ("weight", "bias")
    projections = [f"{prefix}{name}_proj" for prefix in ("", "values_", "out_") for name in "vl"]
    names = {
        BidirectionalCrossAttention(dim=8, talking_heads=True, prenorm=True): {
            **dict.fromkeys(("norm", "context_norm", "to_out", "context_to_out"), both),
            **dict.fromkeys(("to_qk", "context_to_qk", "to_v", "context_to_v"), ("weight",)),
            **dict.fromkeys(("talking_heads", "context_talking_heads"), ("weight",)),
        },
        BiMultiHeadAttention(8, 8, 8, 2): dict.fromkeys(projections, both),
        CrossBlock(8, 2): dict.fromkeys(("to_qk", "to_v", "to_out", "ffn.0", "ffn.1", "ffn.3"), both),
        AllenNlpDecomposableAttention(8, 8): {
            f"{network}_linear_layers.{k}": both
            for network in ("_attend_feedforward._module.", "_compare_feedforward._module.", "_aggregate_feedforward.")
            for k in (0, 1)
        },
    }
    for layer, expected in names.items():
        assert {*layer.state_dict()} == {f"{name}.{kind}" for name, kinds in expected.items() for kind in kinds}


def test_masks_of_esim_that_are_no_tensors():
    a, b = inputs(16, 16)
    for layer in (SoftmaxAttention(), LocalInference()):
        with pytest.raises(TypeError, match=r"^premise_mask must be a tensor, not list"):
            layer(a, [[1]], b, MASK_B)
        with pytest.raises(TypeError, match=r"^hypothesis_mask must be a tensor, not list"):
            layer(a, MASK_A, b, [[1]])


# LightGlue


SCATTERED = torch.rand(3, 1, M, N, generator=torch.Generator().manual_seed(5)) < 0.7
LIGHTGLUE = [
    ({}, None),
    ({"mask": BOTH}, BOTH),
    ({"mask0": MASK_A, "mask1": MASK_B}, BOTH),
    ({"mask": SCATTERED}, SCATTERED),
]


@pytest.mark.parametrize(("arguments", "allowed"), LIGHTGLUE, ids=["no mask", "mask", "two masks", "any mask"])
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
def test_cross_block(arguments, allowed, bias):
    block = CrossBlock(32, 4, bias=bias)
    assert all((f"{name}.bias" in block.state_dict()) is bias for name in ("to_qk", "to_v", "to_out"))
    agree(with_arguments(block, **arguments), cross_block(4, allowed), inputs(32, 32))


def test_cross_block_refuses():
    with pytest.raises(ValueError, match="num_heads must divide embed_dim; they are 3 and 32"):
        CrossBlock(32, 3)
    with pytest.raises(ValueError, match="give mask, or mask0 and mask1, not both"):
        CrossBlock(32, 4)(*inputs(32, 32), BOTH, mask0=MASK_A)
    with pytest.raises(TypeError, match=r"mask must be bool, True for a pair of keypoints, not torch\.float32"):
        CrossBlock(32, 4)(*inputs(32, 32), BOTH.float())
    wanted = re.escape(f"mask must broadcast to (3, 4, {M}, {N}), (batch, heads, m, n); it is (3, {M}, {N})")
    with pytest.raises(ValueError, match=f"^{wanted}$"):
        CrossBlock(32, 4)(*inputs(32, 32), BOTH[:, 0])


# bidirectional-cross-attention


WHICH = (("mask", MASK_A), ("context_mask", MASK_B))
BIAS = torch.randn(2, M, N, generator=torch.Generator().manual_seed(6))


@pytest.mark.parametrize("prenorm", [True, False], ids=["prenorm", "no norm"])
@pytest.mark.parametrize("talking", [True, False], ids=["talking", "not talking"])
@pytest.mark.parametrize("masked", ["none", "mask", "context_mask", "both"])
def test_bidirectional_cross_attention(prenorm, talking, masked):
    mask, context_mask = (m if masked in (which, "both") else None for which, m in WHICH)
    bias = BIAS if masked == "both" else None
    layer = BidirectionalCrossAttention(
        dim=24, context_dim=20, heads=2, dim_head=16, prenorm=prenorm, talking_heads=talking
    )
    arguments = {"mask": mask, "context_mask": context_mask, "rel_pos_bias": bias}
    rows, columns = (torch.ones_like(m) if masked not in (which, "both") else m for which, m in WHICH)
    allowed = rows[:, None, :, None] & columns[:, None, None, :]
    formula = bidirectional(2, prenorm, talking, allowed, bias)
    agree(with_arguments(layer, **arguments), formula, inputs(24, 20), (mask, context_mask))


def test_bidirectional_cross_attention_returns_its_weights():
    layer = with_arguments(BidirectionalCrossAttention(dim=24, heads=2, dim_head=16), return_attn=True)
    agree(layer, bidirectional(2, False, False, None, None, attn=True), inputs(24, 24), (None,) * 4)


@pytest.mark.parametrize(
    "layer",
    [BidirectionalCrossAttention(dim=24, heads=2, dim_head=16, dropout=0.5), BiMultiHeadAttention(24, 24, 32, 2, 0.5)],
    ids=lambda layer: type(layer).__name__,
)
def test_dropout_of_weights(layer):
    """Unbiased in training, each direction by itself; gone in evaluation."""
    torch.manual_seed(0)
    x = inputs(24, 24)
    layer.eval()
    still = layer(*x)
    assert all(torch.equal(one, other) for one, other in zip(still, layer(*x), strict=True))
    layer.train()
    means = [torch.stack(t).mean(0) for t in zip(*(layer(*x) for _ in range(3000)), strict=True)]
    for mean, expected in zip(means, still, strict=True):
        assert 1e-4 < error(mean, expected.detach().double()) < 0.05


@pytest.mark.parametrize("training", [True, False], ids=["all but one train", "one trains"])
@pytest.mark.parametrize("one", ["dropout", "context_dropout"])
def test_each_dropout_trains_by_itself(one, training):
    """As the original's do, with the weights asked for or not: Monte Carlo dropout trains some layers of a model."""
    layer = BidirectionalCrossAttention(dim=24, heads=2, dim_head=16, dropout=0.5)
    x = inputs(24, 24)
    still = layer.eval()(*x)
    layer.train(training)
    getattr(layer, one).train(not training)
    for found in (layer(*x), layer(*x, return_attn=True)[:2]):
        equal = [torch.allclose(t, s, atol=1e-5) for t, s in zip(found, still, strict=True)]
        assert equal == [training == (one == "dropout"), training == (one == "context_dropout")]


# ESIM


@pytest.mark.parametrize("kind", [torch.bool, torch.int64, torch.float32], ids=str)
def test_local_inference(kind):
    class InOurOrder(LocalInference):
        def forward(self, a, b):
            return super().forward(a, MASK_A.to(kind), b, MASK_B.to(kind))

    agree(InOurOrder(), esim(BOTH[:, 0]), inputs(16, 16))


def test_softmax_attention():
    a, b = inputs(16, 16)
    found = SoftmaxAttention()(a, MASK_A, b, MASK_B)
    for one, other in zip(found, both_ways(a @ b.mT, a, b, BOTH[:, 0]), strict=True):
        assert error(one, other.double()) <= 1e-5
    full = SoftmaxAttention()(a, None, b, None)
    for one, other in zip(full, both_ways(a @ b.mT, a, b, None), strict=True):
        assert error(one, other.double()) <= 1e-5


# GroundingDINO, GLIP


@pytest.mark.parametrize("masked", ["none", "v", "l", "both"])
@pytest.mark.parametrize("padding", [True, False], ids=["GroundingDINO", "GLIP"])
def test_bi_multi_head_attention(masked, padding):
    keep_v = MASK_A if masked in ("v", "both") else None
    keep_l = MASK_B if masked in ("l", "both") else None
    pads = [None if k is None else ~k for k in (keep_v, keep_l)]
    given = pads if padding else [None if k is None else k.long() for k in (keep_v, keep_l)]
    layer = BiMultiHeadAttention(24, 20, 32, 2, mask_is_padding=padding).eval()
    layer = with_arguments(layer, attention_mask_v=given[0], attention_mask_l=given[1])
    agree(layer, grounding_dino(2, *pads), inputs(24, 20), (keep_v, keep_l))


def test_bi_multi_head_attention_refuses():
    with pytest.raises(ValueError, match="num_heads must divide embed_dim; they are 3 and 32"):
        BiMultiHeadAttention(24, 20, 32, 3)


# Graph Matching Networks


@pytest.mark.parametrize("similarity", SIMILARITIES)
@pytest.mark.parametrize("shuffled", [False, True], ids=["in order", "shuffled"])
def test_cross_graph_attention(similarity, shuffled):
    """Pair by pair, as the original loops; one graph has no nodes."""
    sizes = [4, 6, 1, 3, 5, 0, 2, 2]
    graph = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))
    torch.manual_seed(0)
    graph = graph[torch.randperm(len(graph))] if shuffled else graph

    places = [tuple((graph == k).nonzero()[:, 0] for k in (i, i + 1)) for i in range(0, len(sizes), 2)]
    formula = graph_matching(similarity, places)
    layer = with_arguments(CrossGraphAttention(similarity), graph_idx=graph, n_graphs=len(sizes))
    lengths = torch.logspace(-2, 0, len(graph)).unsqueeze(1)
    agree(layer, formula, [torch.randn(len(graph), 12) * lengths])


@pytest.mark.parametrize("kind", [torch.int8, torch.int32], ids=str)
def test_cross_graph_attention_of_small_integers(kind):
    """There may be more graphs than the integers can name."""
    x, graph = torch.randn(4, 3), torch.tensor([0, 1, 1, 5])
    layer = CrossGraphAttention()
    assert torch.equal(layer(x, graph.to(kind), 300), layer(x, graph, 6))
    assert torch.equal(layer(x, graph, np.int64(6)), layer(x, graph, 6))


def test_cross_graph_attention_refuses():
    x, graph = torch.randn(4, 3), torch.tensor([0, 0, 1, 1])
    with pytest.raises(ValueError, match="similarity must be"):
        CrossGraphAttention("cosines")
    with pytest.raises(ValueError, match="n_graphs must be even, not 3"):
        CrossGraphAttention()(x, graph, 3)
    with pytest.raises(ValueError, match="names graph 1, but there are 0"):
        CrossGraphAttention()(x, graph, 0)
    with pytest.raises(ValueError, match=r"graph_idx must be \(4,\), not \(3,\)"):
        CrossGraphAttention()(x, graph[:3], 2)
    with pytest.raises(ValueError, match="names graph -1, but they are counted from 0"):
        CrossGraphAttention()(x, graph - 1, 2)
    with pytest.raises(TypeError, match=r"graph_idx must be integers, not torch\.float32"):
        CrossGraphAttention()(x, graph.float(), 2)
    with pytest.raises(TypeError, match=r"graph_idx must be integers, not torch\.complex64"):
        CrossGraphAttention()(x, graph.cfloat(), 2)
    with pytest.raises(ValueError, match=f"names graph {2**40}, but there are 2"):
        CrossGraphAttention()(x, torch.tensor([0, 1, 1, 2**40]), 2)  # whose sizes would take 8 TB
    with pytest.raises(ValueError, match="names graph 2, but there are 2"):
        CrossGraphAttention()(x, graph.to(torch.int8) * 2, 2)
    with pytest.raises(TypeError, match="node_states must be a tensor, not list"):
        CrossGraphAttention()([[1.0]], graph, 2)
    with pytest.raises(TypeError, match="graph_idx must be a tensor, not list"):
        CrossGraphAttention()(x, [0, 0, 1, 1], 2)
    with pytest.raises(ValueError, match=r"node_states must be \(nodes, d\), not \(4,\)"):
        CrossGraphAttention()(x[:, 0], graph, 2)
    with pytest.raises(TypeError, match="n_graphs must be an int, not float"):
        CrossGraphAttention()(x, graph, 2.0)
    nothing = CrossGraphAttention()(x[:0].requires_grad_(), graph[:0], 2)
    assert nothing.shape == (0, 3)
    assert nothing.requires_grad


# AllenNLP


@pytest.mark.parametrize("masked", [0, 1, 2], ids=["no masks", "one mask", "masks"])
def test_allennlp(masked):
    mask_a = MASK_A if masked else torch.ones_like(MASK_A)
    mask_b = MASK_B if masked == 2 else torch.ones_like(MASK_B)
    given = list({"premise_mask": mask_a.long(), "hypothesis_mask": mask_b}.items())[:masked]
    layer = with_arguments(AllenNlpDecomposableAttention(16, 24, 3).eval(), **dict(given))
    agree(layer, allennlp(mask_a, mask_b), inputs(16, 16))


def test_allennlp_looks_at_no_padding():
    """On the CPU padding is taken out first: whatever it holds, scores and gradients are the same bits."""
    torch.manual_seed(0)
    layer = AllenNlpDecomposableAttention(16, 24, 3).eval()
    results = []
    for filling in (0.0, torch.nan):
        a, b = (
            x.masked_fill(~mask[..., None], filling).requires_grad_()
            for x, mask in zip(inputs(16, 16), (MASK_A, MASK_B), strict=True)
        )
        scores = layer(a, b, premise_mask=MASK_A, hypothesis_mask=MASK_B)
        results.append([scores, *torch.autograd.grad(scores.square().sum(), [a, b, *layer.parameters()])])
    for one, other in zip(*results, strict=True):
        assert torch.equal(one, other)
    with pytest.raises(ValueError, match="mask_a must broadcast"):
        layer(*inputs(16, 16), premise_mask=MASK_A[:, :5])
    assert layer(*(x[:0] for x in inputs(16, 16)), premise_mask=MASK_A[:0], hypothesis_mask=MASK_B[:0]).shape == (0, 3)
