"""Attend: each word of one sentence softly aligned with the words of the other (Parikh et al. 2016, section 3.1)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..kernels import soft_align, soft_align_packed
from . import plain
from .masks import are_packed, as_mask
from .mlp import mlp


class Attend(nn.Module):
    """d2l's Attend on the fused operator.

    Args:
        num_inputs: width of the words' vectors. num_hiddens: width of f.
        dropout: before each linear layer of f, while training.
        backend: of `coalign.soft_align`; "reference" is the plain PyTorch of `coalign.model.plain`.
    """

    def __init__(self, num_inputs: int, num_hiddens: int, *, dropout: float = 0.2, backend: str | None = None) -> None:
        super().__init__()
        self.f = mlp(num_inputs, num_hiddens, flatten=False, dropout=dropout)
        self.backend = self.f.backend = backend

    def forward(
        self,
        A: Tensor,
        B: Tensor,
        *,
        mask_a: Tensor | None = None,
        mask_b: Tensor | None = None,
        lengths_a: Tensor | None = None,
        lengths_b: Tensor | None = None,
        offsets_a: Tensor | None = None,
        offsets_b: Tensor | None = None,
        max_length_a: int | None = None,
        max_length_b: int | None = None,
    ) -> tuple[Tensor, Tensor]:
        """A (batch, m, num_inputs), B (batch, n, num_inputs) -> beta like A, alpha like B.

        Masks and lengths as in `coalign.soft_align`; with none given nothing is masked. Padding's rows are 0.
        With offsets and max_lengths the sentences are packed, A (total_a, num_inputs), B (total_b, num_inputs), as
        in `coalign.soft_align_packed`; there is nothing to mask then.

        Raises:
            TypeError, ValueError, coalign.BackendUnavailable: as `coalign.soft_align` does.
        """
        if are_packed(offsets_a, offsets_b, (mask_a, mask_b, lengths_a, lengths_b)):
            assert offsets_a is not None
            assert offsets_b is not None
            if max_length_a is None or max_length_b is None:
                raise ValueError("packed sentences need max_length_a and max_length_b")
            f_a, f_b = self.f(torch.cat([A, B])).split([A.shape[0], B.shape[0]])  # half the calls, forward and backward
            packed = soft_align_packed(
                f_a,
                f_b,
                A,
                B,
                offsets_a,
                offsets_b,
                max_length_a,
                max_length_b,
                backend=self.backend,
            )
            return packed.beta, packed.alpha
        keep_a, keep_b = as_mask("a", A, mask_a, lengths_a), as_mask("b", B, mask_b, lengths_b)
        if self.backend == "reference":
            return plain.attend(self.f, A, B, keep_a, keep_b)
        A, B = plain.keep(A, keep_a), plain.keep(B, keep_b)
        found = soft_align(
            self.f(A),
            self.f(B),
            A,
            B,
            mask_a=mask_a,
            mask_b=mask_b,
            lengths_a=lengths_a,
            lengths_b=lengths_b,
            backend=self.backend,
        )
        return found.beta, found.alpha

    def weights(
        self,
        A: Tensor,
        B: Tensor,
        *,
        mask_a: Tensor | None = None,
        mask_b: Tensor | None = None,
        lengths_a: Tensor | None = None,
        lengths_b: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """The two matrices behind beta and alpha, to look at: (batch, m, n) each, in plain PyTorch.

        The first sums to 1 over B's words for each word of A, the second over A's words for each word of B.
        """
        mask_a, mask_b = as_mask("a", A, mask_a, lengths_a), as_mask("b", B, mask_b, lengths_b)
        return plain.weights(self.f, A, B, mask_a, mask_b)
