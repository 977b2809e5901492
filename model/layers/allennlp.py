"""Decomposable attention as AllenNLP configures it: feed-forward networks of ReLU, masks, class scores."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ...kernels import soft_align, soft_align_packed
from ...kernels.ops import unobserved
from ..segments import offsets_of, segment_sum
from .masks import check_masks


class AllenNlpDecomposableAttention(nn.Module):
    """AllenNLP's DecomposableAttention behind its embedder, and loads the state dict of that part of it.

    Names: _attend_feedforward._module._linear_layers.0 and so on. Leave the embedder's entries out, or load with
    strict=False.

    Args:
        input_dim: the width of embedded words. hidden_dim: of f, g and the hidden layer of h.
        num_labels: classes. dropout: behind every ReLU.
    """

    backend: str | None = None

    def __init__(self, input_dim: int = 200, hidden_dim: int = 200, num_labels: int = 3, dropout: float = 0.2):
        super().__init__()
        twice = (hidden_dim, hidden_dim)
        self._attend_feedforward = _EachPosition(_FeedForward(input_dim, twice, dropout))
        self._compare_feedforward = _EachPosition(_FeedForward(2 * input_dim, twice, dropout))
        self._aggregate_feedforward = _FeedForward(2 * hidden_dim, (hidden_dim, num_labels), dropout, last_linear=True)

    # fmt: off
    def forward(
        self, premise: Tensor, hypothesis: Tensor,
        premise_mask: Tensor | None = None, hypothesis_mask: Tensor | None = None,
    ) -> Tensor:
        # fmt: on
        """premise (batch, m, input_dim), hypothesis (batch, n, input_dim), embedded -> label_logits (batch, labels).

        Args:
            premise_mask, hypothesis_mask: (batch, m), (batch, n), bool or 0 and 1; 1 is a token.

        Raises:
            TypeError, ValueError: as of `soft_align`.
        """
        check_masks(premise_mask=premise_mask, hypothesis_mask=hypothesis_mask)
        mask_a, mask_b = (None if mask is None else mask != 0 for mask in (premise_mask, hypothesis_mask))
        if self._is_better_packed(premise, hypothesis, mask_a, mask_b):
            return self._packed_scores(_packed(premise, mask_a), _packed(hypothesis, mask_b))
        f_a, f_b = self._attend_feedforward(premise), self._attend_feedforward(hypothesis)
        found = soft_align(f_a, f_b, premise, hypothesis, mask_a=mask_a, mask_b=mask_b, backend=self.backend)
        sums = [
            self._compared(premise, found.beta, mask_a),
            self._compared(hypothesis, found.alpha, mask_b),
        ]
        scores: Tensor = self._aggregate_feedforward(torch.cat(sums, -1))
        return scores

    # fmt: off
    def _is_better_packed(
        self, premise: Tensor, hypothesis: Tensor, mask_a: Tensor | None, mask_b: Tensor | None
    ) -> bool:
        # fmt: on
        """Whether to take the padding out first: where that needs no waiting. What doesn't fit is refused later."""
        sides = ((premise, mask_a), (hypothesis, mask_b))
        return (
            self.backend != "reference"
            and any(mask is not None for _, mask in sides)
            and all(x.ndim == 3 and (mask is None or mask.shape == x.shape[:2]) for x, mask in sides)
            and premise.shape[0] == hypothesis.shape[0]
            and unobserved((premise, hypothesis, mask_a, mask_b))
            and premise.device.type == hypothesis.device.type == "cpu"
        )

    def _packed_scores(self, a: _Packed, b: _Packed) -> Tensor:
        f_a, f_b = self._attend_feedforward(a.rows), self._attend_feedforward(b.rows)
        beta, alpha = soft_align_packed(
            f_a, f_b, a.rows, b.rows, a.offsets, b.offsets, a.longest, b.longest, backend=self.backend
        )
        sums = [
            segment_sum(self._compare_feedforward(torch.cat([x.rows, aligned], -1)), x.offsets)
            for x, aligned in ((a, beta), (b, alpha))
        ]
        scores: Tensor = self._aggregate_feedforward(torch.cat(sums, -1))
        return scores

    def _compared(self, x: Tensor, aligned: Tensor, mask: Tensor | None) -> Tensor:
        compared: Tensor = self._compare_feedforward(torch.cat([x, aligned], -1))
        return (compared if mask is None else compared.masked_fill(~mask.unsqueeze(-1), 0)).sum(1)


class _Packed(NamedTuple):
    """The tokens of a side: rows (total, width), offsets (pairs + 1,) int32, and the longest pair's."""

    rows: Tensor
    offsets: Tensor
    longest: int


def _packed(x: Tensor, mask: Tensor | None) -> _Packed:
    counts = torch.full(x.shape[:1], x.shape[1], device=x.device) if mask is None else mask.sum(1)
    rows = x.flatten(0, 1)
    if mask is not None:
        rows = rows.index_select(0, mask.flatten().nonzero()[:, 0])
    longest = int(counts.max()) if len(counts) else 0
    return _Packed(rows, offsets_of(counts), longest)


class _FeedForward(nn.Module):
    def __init__(self, input_dim: int, widths: Sequence[int], dropout: float, last_linear: bool = False):
        super().__init__()
        sizes = [input_dim, *widths]
        self._linear_layers = nn.ModuleList(nn.Linear(*pair) for pair in pairwise(sizes))
        self._dropout = nn.Dropout(dropout)
        self._last_linear = last_linear

    def forward(self, x: Tensor) -> Tensor:
        for i, layer in enumerate(self._linear_layers):
            x = layer(x)
            if i + 1 < len(self._linear_layers) or not self._last_linear:
                x = self._dropout(torch.relu(x))
        return x


class _EachPosition(nn.Module):
    """Gives the network the name that AllenNLP's TimeDistributed gives it."""

    def __init__(self, module: nn.Module):
        super().__init__()
        self._module = module

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self._module(x)
        return result
