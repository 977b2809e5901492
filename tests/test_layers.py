"""Drop-in layers against their originals' formulas, in plain PyTorch on a random state dict: values and gradients.

Every formula takes the layer's parameters by the names that the original gives them, so a renamed one is a KeyError.
"""

from __future__ import annotations

from collections.abc import Callable

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
from torch.nn import functional as F

from coalign.testing import error

M, N = 9, 7
MASK_A = torch.arange(M) < torch.tensor([9, 4, 6])[:, None]
MASK_B = torch.arange(N) < torch.tensor([2, 7, 5])[:, None]
BOTH = MASK_A[:, None, :, None] & MASK_B[:, None, None, :]
Names = dict[str, Tensor]


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


def linear(w: Names, name: str, x: Tensor) -> Tensor:
    return F.linear(x, w[f"{name}.weight"], w.get(f"{name}.bias"))


def heads(x: Tensor, count: int) -> Tensor:
    return x.reshape(*x.shape[:2], count, -1).permute(0, 2, 1, 3)


def joined(x: Tensor) -> Tensor:
    return x.permute(0, 2, 1, 3).reshape(x.shape[0], x.shape[2], -1)


def both_ways(e: Tensor, a: Tensor, b: Tensor, allowed: Tensor | None) -> tuple[Tensor, Tensor]:
    e = e if allowed is None else e.masked_fill(~allowed, -torch.inf)
    return e.softmax(-1).nan_to_num() @ b, e.softmax(-2).nan_to_num().mT @ a


def inputs(width_a: int, width_b: int) -> list[Tensor]:
    torch.manual_seed(0)
    return [torch.randn(3, M, width_a), torch.randn(3, N, width_b)]


# LightGlue


def cross_block(allowed: Tensor | None) -> Callable[..., tuple[Tensor, ...]]:
    def formula(w: Names, x0: Tensor, x1: Tensor) -> tuple[Tensor, ...]:
        qk0, qk1 = (heads(linear(w, "to_qk", x), 4) * 8**-0.25 for x in (x0, x1))
        v0, v1 = (heads(linear(w, "to_v", x), 4) for x in (x0, x1))
        messages = both_ways(qk0 @ qk1.mT, v0, v1, allowed)
        outputs = []
        for x, message in zip((x0, x1), messages, strict=True):
            y = linear(w, "ffn.0", torch.cat([x, linear(w, "to_out", joined(message))], -1))
            y = F.gelu(F.layer_norm(y, y.shape[-1:], w["ffn.1.weight"], w["ffn.1.bias"]))
            outputs.append(x + linear(w, "ffn.3", y))
        return tuple(outputs)

    return formula


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
    agree(with_arguments(CrossBlock(32, 4, bias=bias), **arguments), cross_block(allowed), inputs(32, 32))


def test_cross_block_refuses():
    with pytest.raises(ValueError, match="num_heads must divide embed_dim; they are 3 and 32"):
        CrossBlock(32, 3)
    with pytest.raises(ValueError, match="give mask, or mask0 and mask1, not both"):
        CrossBlock(32, 4)(*inputs(32, 32), BOTH, mask0=MASK_A)


# bidirectional-cross-attention


def bidirectional(prenorm: bool, talking: bool, allowed: Tensor | None, bias: Tensor | None, attn: bool = False):
    def formula(w: Names, x: Tensor, y: Tensor) -> tuple[Tensor, ...]:
        if prenorm:
            x = F.layer_norm(x, x.shape[-1:], w["norm.weight"], w["norm.bias"])
            y = F.layer_norm(y, y.shape[-1:], w["context_norm.weight"], w["context_norm.bias"])
        e = heads(linear(w, "to_qk", x), 2) @ heads(linear(w, "context_to_qk", y), 2).mT / 4
        e = e if bias is None else e + bias
        e = e if allowed is None else e.masked_fill(~allowed, -1e300)
        p, q = e.softmax(-1), e.softmax(-2)
        if talking:
            p = torch.einsum("bhij,gh->bgij", p, w["talking_heads.weight"][..., 0, 0])
            q = torch.einsum("bhij,gh->bgij", q, w["context_talking_heads.weight"][..., 0, 0])
        out = linear(w, "to_out", joined(p @ heads(linear(w, "context_to_v", y), 2)))
        context_out = linear(w, "context_to_out", joined(q.mT @ heads(linear(w, "to_v", x), 2)))
        return (out, context_out, p, q) if attn else (out, context_out)

    return formula


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
    formula = bidirectional(prenorm, talking, allowed, bias)
    agree(with_arguments(layer, **arguments), formula, inputs(24, 20), (mask, context_mask))


def test_bidirectional_cross_attention_returns_its_weights():
    layer = with_arguments(BidirectionalCrossAttention(dim=24, heads=2, dim_head=16), return_attn=True)
    agree(layer, bidirectional(False, False, None, None, attn=True), inputs(24, 24), (None,) * 4)


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


# ESIM


def esim(w: Names, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    beta, alpha = both_ways(a @ b.mT, a, b, BOTH[:, 0])
    return tuple(torch.cat([x, y, x - y, x * y], -1) for x, y in ((a, beta), (b, alpha)))


@pytest.mark.parametrize("kind", [torch.bool, torch.int64, torch.float32], ids=str)
def test_local_inference(kind):
    class InOurOrder(LocalInference):
        def forward(self, a, b):
            return super().forward(a, MASK_A.to(kind), b, MASK_B.to(kind))

    agree(InOurOrder(), esim, inputs(16, 16))


def test_softmax_attention():
    a, b = inputs(16, 16)
    found = SoftmaxAttention()(a, MASK_A, b, MASK_B)
    for one, other in zip(found, both_ways(a @ b.mT, a, b, BOTH[:, 0]), strict=True):
        assert error(one, other.double()) <= 1e-5
    full = SoftmaxAttention()(a, None, b, None)
    for one, other in zip(full, both_ways(a @ b.mT, a, b, None), strict=True):
        assert error(one, other.double()) <= 1e-5


# GroundingDINO, GLIP


def grounding_dino(mask_v: Tensor | None, mask_l: Tensor | None) -> Callable[..., tuple[Tensor, Tensor]]:
    """With the original's maxima and clamps; masks True for padding."""

    def formula(w: Names, v: Tensor, l: Tensor) -> tuple[Tensor, Tensor]:
        e = heads(linear(w, "v_proj", v) / 4, 2) @ heads(linear(w, "l_proj", l), 2).mT
        e = (e - e.max()).clamp(-50000, 50000)
        of_l = e.mT - e.mT.amax(-1, keepdim=True)
        of_l = of_l.clamp(-50000, 50000)
        if mask_v is not None:
            of_l = of_l.masked_fill(mask_v[:, None, None], -torch.inf)
        if mask_l is not None:
            e = e.masked_fill(mask_l[:, None, None], -torch.inf)
        v_out = e.softmax(-1) @ heads(linear(w, "values_l_proj", l), 2)
        l_out = of_l.softmax(-1) @ heads(linear(w, "values_v_proj", v), 2)
        return linear(w, "out_v_proj", joined(v_out)), linear(w, "out_l_proj", joined(l_out))

    return formula


@pytest.mark.parametrize("masked", ["none", "v", "l", "both"])
@pytest.mark.parametrize("padding", [True, False], ids=["GroundingDINO", "GLIP"])
def test_bi_multi_head_attention(masked, padding):
    keep_v = MASK_A if masked in ("v", "both") else None
    keep_l = MASK_B if masked in ("l", "both") else None
    pads = [None if k is None else ~k for k in (keep_v, keep_l)]
    given = pads if padding else [None if k is None else k.long() for k in (keep_v, keep_l)]
    layer = BiMultiHeadAttention(24, 20, 32, 2, mask_is_padding=padding).eval()
    layer = with_arguments(layer, attention_mask_v=given[0], attention_mask_l=given[1])
    agree(layer, grounding_dino(*pads), inputs(24, 20), (keep_v, keep_l))


# Graph Matching Networks

SIMILARITIES = {
    "dotproduct": lambda x, y: x @ y.mT,
    "cosine": lambda x, y: F.cosine_similarity(x[:, None], y[None], dim=-1),
    "euclidean": lambda x, y: -(x[:, None] - y[None]).square().sum(-1),
}


@pytest.mark.parametrize("similarity", SIMILARITIES)
@pytest.mark.parametrize("shuffled", [False, True], ids=["in order", "shuffled"])
def test_cross_graph_attention(similarity, shuffled):
    """Pair by pair, as the original loops; one graph has no nodes."""
    sizes = [4, 6, 1, 3, 5, 0, 2, 2]
    graph = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))
    torch.manual_seed(0)
    graph = graph[torch.randperm(len(graph))] if shuffled else graph

    def formula(w: Names, x: Tensor) -> tuple[Tensor]:
        out = torch.zeros_like(x)
        for i in range(0, len(sizes), 2):
            at_a, at_b = (graph == i).nonzero()[:, 0], (graph == i + 1).nonzero()[:, 0]
            if len(at_a) and len(at_b):
                a, b = x[at_a], x[at_b]
                beta, alpha = both_ways(SIMILARITIES[similarity](a, b), a, b, None)
                out = out.index_copy(0, at_a, beta).index_copy(0, at_b, alpha)
        return (out,)

    layer = with_arguments(CrossGraphAttention(similarity), graph_idx=graph, n_graphs=len(sizes))
    agree(layer, formula, [torch.randn(len(graph), 12)])


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
    assert CrossGraphAttention()(x[:0], graph[:0], 2).shape == (0, 3)


# AllenNLP


def allennlp(mask_a: Tensor, mask_b: Tensor) -> Callable[..., tuple[Tensor]]:
    """Its masked softmax: of scores times the mask, times the mask, over their sum."""

    def masked_softmax(e: Tensor, mask: Tensor) -> Tensor:
        weights = (e * mask).softmax(-1) * mask
        return weights / (weights.sum(-1, keepdim=True) + 1e-13)

    def network(w: Names, name: str, x: Tensor) -> Tensor:
        return linear(w, f"{name}._linear_layers.1", linear(w, f"{name}._linear_layers.0", x).relu())

    def formula(w: Names, a: Tensor, b: Tensor) -> tuple[Tensor]:
        f_a, f_b = (network(w, "_attend_feedforward._module", x).relu() for x in (a, b))
        e = f_a @ f_b.mT
        beta = masked_softmax(e, mask_b[:, None].double()) @ b
        alpha = masked_softmax(e.mT, mask_a[:, None].double()) @ a
        sums = [
            (network(w, "_compare_feedforward._module", torch.cat(x, -1)).relu() * mask[..., None]).sum(1)
            for x, mask in (((a, beta), mask_a), ((b, alpha), mask_b))
        ]
        return (network(w, "_aggregate_feedforward", torch.cat(sums, -1)),)

    return formula


@pytest.mark.parametrize("masked", [True, False], ids=["masks", "no masks"])
def test_allennlp(masked):
    mask_a, mask_b = (MASK_A, MASK_B) if masked else (torch.ones_like(MASK_A), torch.ones_like(MASK_B))
    layer = AllenNlpDecomposableAttention(16, 24, 3).eval()
    if masked:
        layer = with_arguments(layer, premise_mask=mask_a.long(), hypothesis_mask=mask_b)
    agree(layer, allennlp(mask_a, mask_b), inputs(16, 16))
