"""The layer of the package bidirectional-cross-attention: a sequence and its context attend to each other."""

from __future__ import annotations

from torch import Tensor, nn

from ...kernels import alignment_weights, soft_align
from .heads import check_sequences, merge_heads, per_head, split_heads, tokens_only
from .masks import check_masks


class BidirectionalCrossAttention(nn.Module):
    """Stands for bidirectional_cross_attention.BidirectionalCrossAttention, and loads its state dict.

    Where the weights themselves are wanted (talking heads, return_attn) it stores them, as the original always does.

    Args:
        dim, context_dim: the widths of the two sequences; context_dim is dim unless given.
        heads, dim_head: how many heads, how wide.
        dropout: of the weights, in training, for each direction by itself.
        talking_heads: mix the heads' weights by a 1 x 1 convolution, after dropout.
        prenorm: normalise both inputs first; versions of the package that know no such argument always do.
    """

    backend: str | None = None

    # fmt: off
    def __init__(
        self, *, dim: int, heads: int = 8, dim_head: int = 64, context_dim: int | None = None,
        dropout: float = 0.0, talking_heads: bool = False, prenorm: bool = False,
    ):
        # fmt: on
        super().__init__()
        context_dim = dim if context_dim is None else context_dim
        inner = heads * dim_head
        self.heads = heads
        self.scale = dim_head**-0.5
        self.norm = nn.LayerNorm(dim) if prenorm else nn.Identity()
        self.context_norm = nn.LayerNorm(context_dim) if prenorm else nn.Identity()
        self.dropout = nn.Dropout(dropout)
        self.context_dropout = nn.Dropout(dropout)
        self.to_qk = nn.Linear(dim, inner, bias=False)
        self.context_to_qk = nn.Linear(context_dim, inner, bias=False)
        self.to_v = nn.Linear(dim, inner, bias=False)
        self.context_to_v = nn.Linear(context_dim, inner, bias=False)
        self.to_out = nn.Linear(inner, dim)
        self.context_to_out = nn.Linear(inner, context_dim)
        self.talking_heads = _mixing(heads) if talking_heads else nn.Identity()
        self.context_talking_heads = _mixing(heads) if talking_heads else nn.Identity()

    # fmt: off
    def forward(
        self, x: Tensor, context: Tensor, mask: Tensor | None = None, context_mask: Tensor | None = None,
        return_attn: bool = False, rel_pos_bias: Tensor | None = None,
    ) -> tuple[Tensor, ...]:
        # fmt: on
        """x (batch, i, dim), context (batch, j, context_dim) -> the same shapes, aligned.

        A position of padding, or one with nothing to attend to, receives 0 ahead of the last projection, where the
        original averages over everything, padding included.

        Args:
            mask: (batch, i) bool, context_mask: (batch, j) bool; True is a token.
            return_attn: also return both weight matrices, (batch, heads, i, j) each: one sums to 1 over j, the
                other over i, but for the dropout and the talking heads that they have been through.
            rel_pos_bias: broadcasts to (batch, heads, i, j), added to the scores.

        Raises:
            TypeError, ValueError: as of `soft_align`.
        """
        check_sequences(x=x, context=context)
        check_masks(mask=mask, context_mask=context_mask)
        x, context = self.norm(x), self.context_norm(context)
        qk, v = split_heads(self.to_qk(x), self.heads), split_heads(self.to_v(x), self.heads)
        context_qk = split_heads(self.context_to_qk(context), self.heads)
        context_v = split_heads(self.context_to_v(context), self.heads)
        masks = {"mask_a": per_head(mask), "mask_b": per_head(context_mask)}
        dropout = _share(self.dropout), _share(self.context_dropout)
        options = {**masks, "scale": self.scale, "bias": rel_pos_bias, "dropout": dropout}
        weights: tuple[Tensor, ...] = ()
        if return_attn or not isinstance(self.talking_heads, nn.Identity):
            p, q = alignment_weights(qk, context_qk, **options)
            p, q = self.talking_heads(p), self.context_talking_heads(q)
            beta, alpha = p @ tokens_only(context_v, masks["mask_b"]), q.mT @ tokens_only(v, masks["mask_a"])
            weights = (p, q) if return_attn else ()
        else:
            beta, alpha = soft_align(qk, context_qk, v, context_v, **options, backend=self.backend)
        return self.to_out(merge_heads(beta)), self.context_to_out(merge_heads(alpha)), *weights


def _share(dropout: nn.Dropout) -> float:
    """What the layer drops now: it may train while others don't, as for Monte Carlo dropout."""
    return dropout.p if dropout.training else 0.0


def _mixing(heads: int) -> nn.Module:
    return nn.Conv2d(heads, heads, 1, bias=False)
