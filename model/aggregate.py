"""Aggregate: class scores from the two sums (Parikh et al. 2016, section 3.3)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .mlp import mlp


class Aggregate(nn.Module):
    """d2l's Aggregate, of sums, which `Compare` makes here, or of the words' vectors that d2l's Compare gives.

    Args:
        num_inputs: width of V_A and V_B together. num_hiddens: width of h. num_outputs: number of classes.
        dropout: before each linear layer of h, while training.
    """

    def __init__(self, num_inputs: int, num_hiddens: int, num_outputs: int, *, dropout: float = 0.2) -> None:
        super().__init__()
        self.h = mlp(num_inputs, num_hiddens, flatten=True, dropout=dropout)
        self.linear = nn.Linear(num_hiddens, num_outputs)

    def forward(self, V_A: Tensor, V_B: Tensor) -> Tensor:
        """V_A, V_B (batch, width), or (batch, words, width), which are summed -> class scores (batch, num_outputs), not
        normalised."""
        V_A, V_B = (V.sum(1) if V.ndim == 3 else V for V in (V_A, V_B))
        return self.linear(self.h(torch.cat([V_A, V_B], dim=1)))
