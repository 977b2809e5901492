"""ESIM's local inference (Chen et al. 2017, "Enhanced LSTM for Natural Language Inference", section 3.2)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ...kernels import soft_align
from .masks import check_masks


class SoftmaxAttention(nn.Module):
    """Chen et al. 2017, "Enhanced LSTM for Natural Language Inference", equations 11 to 13: e_ij = a_i · b_j, and each
    side aligned to the other. No parameters.
    """

    backend: str | None = None

    # fmt: off
    def forward(
        self, premise: Tensor, premise_mask: Tensor | None, hypothesis: Tensor, hypothesis_mask: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        # fmt: on
        """premise (batch, m, d), hypothesis (batch, n, d) -> what each aligns with, (batch, m, d), (batch, n, d).

        Args:
            premise_mask, hypothesis_mask: (batch, m), (batch, n), bool or 0 and 1; 1 is a token. Padding gives 0.

        Raises:
            TypeError, ValueError: as of `soft_align`.
        """
        check_masks(premise_mask=premise_mask, hypothesis_mask=hypothesis_mask)
        mask_a, mask_b = (None if mask is None else mask != 0 for mask in (premise_mask, hypothesis_mask))
        found = soft_align(
            premise, hypothesis, premise, hypothesis, mask_a=mask_a, mask_b=mask_b, backend=self.backend
        )
        return found.beta, found.alpha


class LocalInference(SoftmaxAttention):
    """Equations 11 to 15 of `SoftmaxAttention`'s paper: what it aligns, with what was there. No parameters."""

    # fmt: off
    def forward(
        self, premise: Tensor, premise_mask: Tensor | None, hypothesis: Tensor, hypothesis_mask: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        # fmt: on
        """Arguments and errors as of `SoftmaxAttention.forward` -> m_a (batch, m, 4 d), m_b (batch, n, 4 d).

        m_a = [a; ã; a − ã; a ∘ ã], where ã is what a aligns with, 0 for padding, and m_b likewise.
        """
        beta, alpha = super().forward(premise, premise_mask, hypothesis, hypothesis_mask)
        return _enhanced(premise, beta), _enhanced(hypothesis, alpha)


def _enhanced(x: Tensor, aligned: Tensor) -> Tensor:
    return torch.cat([x, aligned, x - aligned, x * aligned], -1)
