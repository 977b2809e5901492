"""Compare: each word with what is aligned to it (Parikh et al. 2016, section 3.2), summed over the words."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from . import plain
from .masks import are_packed, as_mask, check_offsets, check_sentences
from .mlp import FeedForward, are_hooked, mlp
from .segments import segment_sum


class Compare(nn.Module):
    """d2l's Compare and the sums over words that d2l's Aggregate begins with: padding is known here, and left out.

    Args:
        num_inputs: width of a word's vector and of what is aligned to it, together. num_hiddens: width of g.
        dropout: before each linear layer of g, while training.
    """

    def __init__(self, num_inputs: int, num_hiddens: int, *, dropout: float = 0.2) -> None:
        super().__init__()
        self.g = mlp(num_inputs, num_hiddens, flatten=False, dropout=dropout)

    def forward(
        self,
        A: Tensor,
        B: Tensor,
        beta: Tensor,
        alpha: Tensor,
        *,
        mask_a: Tensor | None = None,
        mask_b: Tensor | None = None,
        lengths_a: Tensor | None = None,
        lengths_b: Tensor | None = None,
        offsets_a: Tensor | None = None,
        offsets_b: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """A, beta (batch, m, width), B, alpha (batch, n, width) -> V_A, V_B, (batch, num_hiddens) each.

        With offsets, (pairs + 1,), the sentences are packed: A, beta (total_a, width), B, alpha (total_b, width).

        Raises:
            TypeError, ValueError: sentences, masks, lengths or offsets that do not fit.
        """
        packed = are_packed(offsets_a, offsets_b, (mask_a, mask_b, lengths_a, lengths_b))
        for name, x, aligned_name, aligned in (("A", A, "beta", beta), ("B", B, "alpha", alpha)):
            check_sentences(name, x, packed)
            check_sentences(aligned_name, aligned, packed)
            if x.shape[:-1] != aligned.shape[:-1]:
                raise ValueError(
                    f"{aligned_name} must have a row for each of {name}'s: they are {tuple(aligned.shape)} and "
                    f"{tuple(x.shape)}"
                )
        if not packed and A.shape[0] != B.shape[0]:
            raise ValueError(f"A and B must have as many sentences; they have {A.shape[0]} and {B.shape[0]}")
        if packed:
            assert offsets_a is not None
            assert offsets_b is not None
            check_offsets("a", offsets_a, A.shape[0])
            check_offsets("b", offsets_b, B.shape[0])
            if offsets_a.shape != offsets_b.shape:
                raise ValueError(
                    "offsets_a and offsets_b must describe the same number of pairs; they have "
                    f"{offsets_a.shape[0]} and {offsets_b.shape[0]} entries"
                )
            inputs = torch.cat([A, B]), torch.cat([beta, alpha])  # half the calls, forward and backward
            apart = type(self.g) is FeedForward and not are_hooked(self.g)  # who looks at g's input expects one tensor
            v = self.g(*inputs) if apart else self.g(torch.cat(inputs, dim=-1))
            sums = segment_sum(v, torch.cat([offsets_a, offsets_b[1:].long() + offsets_a[-1]]))
            V_A, V_B = sums.split([offsets_a.shape[0] - 1, offsets_b.shape[0] - 1])
            return V_A, V_B
        mask_a, mask_b = as_mask("a", A, mask_a, lengths_a), as_mask("b", B, mask_b, lengths_b)
        return plain.compare(self.g, A, B, beta, alpha, mask_a, mask_b)
