"""What the layers of coalign.model.layers stand for: their originals' formulas, written in plain PyTorch.

A formula takes the parameters by the names that the original gives them, and then the inputs. Tests hold the layers to
these formulas; benchmarks time the layers against them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor
from torch.nn import functional as F

Names = Mapping[str, Tensor]
Formula = Callable[..., tuple[Tensor, ...]]


def linear(w: Names, name: str, x: Tensor) -> Tensor:
    return F.linear(x, w[f"{name}.weight"], w.get(f"{name}.bias"))


def heads(x: Tensor, count: int) -> Tensor:
    return x.reshape(*x.shape[:2], count, -1).permute(0, 2, 1, 3)


def joined(x: Tensor) -> Tensor:
    return x.permute(0, 2, 1, 3).reshape(x.shape[0], x.shape[2], -1)


def both_ways(e: Tensor, a: Tensor, b: Tensor, allowed: Tensor | None) -> tuple[Tensor, Tensor]:
    e = e if allowed is None else e.masked_fill(~allowed, -torch.inf)
    p, q = e.softmax(-1), e.softmax(-2)
    if allowed is not None:
        p, q = p.nan_to_num(), q.nan_to_num()
    return p @ b, q.mT @ a


def cross_block(count: int, allowed: Tensor | None) -> Formula:
    """LightGlue's CrossBlock of so many heads."""

    def formula(w: Names, x0: Tensor, x1: Tensor) -> tuple[Tensor, ...]:
        qk0, qk1 = (heads(linear(w, "to_qk", x), count) for x in (x0, x1))
        scale = qk0.shape[-1] ** -0.25
        v0, v1 = (heads(linear(w, "to_v", x), count) for x in (x0, x1))
        messages = both_ways((qk0 * scale) @ (qk1 * scale).mT, v0, v1, allowed)
        outputs = []
        for x, message in zip((x0, x1), messages, strict=True):
            y = linear(w, "ffn.0", torch.cat([x, linear(w, "to_out", joined(message))], -1))
            y = F.gelu(F.layer_norm(y, y.shape[-1:], w["ffn.1.weight"], w["ffn.1.bias"]))
            outputs.append(x + linear(w, "ffn.3", y))
        return tuple(outputs)

    return formula


# fmt: off
def bidirectional(
    count: int, prenorm: bool, talking: bool, allowed: Tensor | None, bias: Tensor | None, attn: bool = False
) -> Formula:
    # fmt: on
    """bidirectional-cross-attention's layer of so many heads."""

    def formula(w: Names, x: Tensor, y: Tensor) -> tuple[Tensor, ...]:
        if prenorm:
            x = F.layer_norm(x, x.shape[-1:], w["norm.weight"], w["norm.bias"])
            y = F.layer_norm(y, y.shape[-1:], w["context_norm.weight"], w["context_norm.bias"])
        qk, context_qk = heads(linear(w, "to_qk", x), count), heads(linear(w, "context_to_qk", y), count)
        e = qk @ context_qk.mT * qk.shape[-1] ** -0.5
        e = e if bias is None else e + bias
        e = e if allowed is None else e.masked_fill(~allowed, -torch.finfo(e.dtype).max)
        p, q = e.softmax(-1), e.softmax(-2)
        if talking:
            p = torch.einsum("bhij,gh->bgij", p, w["talking_heads.weight"][..., 0, 0])
            q = torch.einsum("bhij,gh->bgij", q, w["context_talking_heads.weight"][..., 0, 0])
        out = linear(w, "to_out", joined(p @ heads(linear(w, "context_to_v", y), count)))
        context_out = linear(w, "context_to_out", joined(q.mT @ heads(linear(w, "to_v", x), count)))
        return (out, context_out, p, q) if attn else (out, context_out)

    return formula


def esim(allowed: Tensor | None) -> Formula:
    """ESIM's local inference: [a; ã; a − ã; a ∘ ã], and the same of b."""

    def formula(w: Names, a: Tensor, b: Tensor) -> tuple[Tensor, ...]:
        beta, alpha = both_ways(a @ b.mT, a, b, allowed)
        return tuple(torch.cat([x, y, x - y, x * y], -1) for x, y in ((a, beta), (b, alpha)))

    return formula


def grounding_dino(count: int, pads_v: Tensor | None, pads_l: Tensor | None) -> Formula:
    """GroundingDINO's BiMultiHeadAttention with its maxima and clamps; pads are True for padding."""

    def formula(w: Names, v: Tensor, l: Tensor) -> tuple[Tensor, ...]:
        of_v, of_l = heads(linear(w, "v_proj", v), count), heads(linear(w, "l_proj", l), count)
        e = (of_v * of_v.shape[-1] ** -0.5) @ of_l.mT
        e = (e - e.max()).clamp(-50000, 50000)
        turned = e.mT - e.mT.amax(-1, keepdim=True)
        turned = turned.clamp(-50000, 50000)
        if pads_v is not None:
            turned = turned.masked_fill(pads_v[:, None, None], -torch.inf)
        if pads_l is not None:
            e = e.masked_fill(pads_l[:, None, None], -torch.inf)
        v_out = e.softmax(-1) @ heads(linear(w, "values_l_proj", l), count)
        l_out = turned.softmax(-1) @ heads(linear(w, "values_v_proj", v), count)
        return linear(w, "out_v_proj", joined(v_out)), linear(w, "out_l_proj", joined(l_out))

    return formula


SIMILARITIES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "dotproduct": lambda x, y: x @ y.mT,
    "cosine": lambda x, y: F.cosine_similarity(x[:, None], y[None], dim=-1),
    "euclidean": lambda x, y: -(x[:, None] - y[None]).square().sum(-1),
}


def graph_matching(similarity: str, places: list[tuple[Tensor, Tensor]]) -> Formula:
    """Graph Matching Networks' attention across graphs, pair by pair as the original loops. places: of pairs' nodes."""

    def formula(w: Names, x: Tensor) -> tuple[Tensor, ...]:
        out = torch.zeros_like(x)
        for at_a, at_b in places:
            if len(at_a) and len(at_b):
                a, b = x[at_a], x[at_b]
                beta, alpha = both_ways(SIMILARITIES[similarity](a, b), a, b, None)
                out = out.index_copy(0, at_a, beta).index_copy(0, at_b, alpha)
        return (out,)

    return formula


def allennlp(mask_a: Tensor, mask_b: Tensor) -> Formula:
    """AllenNLP's model with its masked softmax: of scores times the mask, times the mask, over their sum."""

    def masked_softmax(e: Tensor, mask: Tensor) -> Tensor:
        mask = mask[:, None].to(e.dtype)
        weights = (e * mask).softmax(-1) * mask
        return weights / (weights.sum(-1, keepdim=True) + 1e-13)

    def network(w: Names, name: str, x: Tensor) -> Tensor:
        return linear(w, f"{name}._linear_layers.1", linear(w, f"{name}._linear_layers.0", x).relu())

    def formula(w: Names, a: Tensor, b: Tensor) -> tuple[Tensor, ...]:
        f_a, f_b = (network(w, "_attend_feedforward._module", x).relu() for x in (a, b))
        e = f_a @ f_b.mT
        beta, alpha = masked_softmax(e, mask_b) @ b, masked_softmax(e.mT, mask_a) @ a
        sums = [
            (network(w, "_compare_feedforward._module", torch.cat(x, -1)).relu() * mask[..., None]).sum(1)
            for x, mask in (((a, beta), mask_a), ((b, alpha), mask_b))
        ]
        return (network(w, "_aggregate_feedforward", torch.cat(sums, -1)),)

    return formula
