"""GroundingDINO's and GLIP's fusion of image and text: both attend to each other from one score matrix."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from ...kernels import soft_align
from .heads import check_sequences, merge_heads, per_head, split_heads
from .masks import check_masks

CLAMP = 50000.0


class BiMultiHeadAttention(nn.Module):
    """Stands for the BiMultiHeadAttention of GroundingDINO and of GLIP, and loads their state dicts.

    The originals subtract the largest score of all and clamp to +-50000 what they have, so that the exponentials stay
    finite. The operator's softmax subtracts each slice's own maximum, so here scores are clamped alone.

    Args:
        v_dim, l_dim: the widths of image and text features. embed_dim: of all heads together.
        dropout: of the weights, in training, for each direction by itself.
        cfg: accepted and ignored.
        mask_is_padding: what True means in masks: padding (GroundingDINO), or with False a token (GLIP).
    """

    backend: str | None = None

    # fmt: off
    def __init__(
        self, v_dim: int, l_dim: int, embed_dim: int, num_heads: int, dropout: float = 0.1, cfg: Any = None, *,
        mask_is_padding: bool = True,
    ):
        # fmt: on
        super().__init__()
        if embed_dim % num_heads:
            raise ValueError(f"num_heads must divide embed_dim; they are {num_heads} and {embed_dim}")
        self.num_heads = num_heads
        self.scale = (embed_dim // num_heads) ** -0.5
        self.dropout = dropout
        self.mask_is_padding = mask_is_padding
        self.v_proj = nn.Linear(v_dim, embed_dim)
        self.l_proj = nn.Linear(l_dim, embed_dim)
        self.values_v_proj = nn.Linear(v_dim, embed_dim)
        self.values_l_proj = nn.Linear(l_dim, embed_dim)
        self.out_v_proj = nn.Linear(embed_dim, v_dim)
        self.out_l_proj = nn.Linear(embed_dim, l_dim)
        for layer in (
            *(self.v_proj, self.l_proj, self.values_v_proj, self.values_l_proj),
            *(self.out_v_proj, self.out_l_proj),
        ):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)

    # fmt: off
    def forward(
        self, v: Tensor, l: Tensor, attention_mask_v: Tensor | None = None, attention_mask_l: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        # fmt: on
        """v (batch, n_image, v_dim), l (batch, n_text, l_dim) -> the same shapes, aligned.

        Args:
            attention_mask_v: (batch, n_image), attention_mask_l: (batch, n_text), bool or 0 and 1; see mask_is_padding.
                A position of padding receives 0 ahead of the last projection; in the originals it attends too.

        Raises:
            TypeError, ValueError: as of `soft_align`.
        """
        check_sequences(v=v, l=l)
        check_masks(attention_mask_v=attention_mask_v, attention_mask_l=attention_mask_l)
        heads = self.num_heads
        f_v, f_l = split_heads(self.v_proj(v), heads), split_heads(self.l_proj(l), heads)
        of_v, of_l = split_heads(self.values_v_proj(v), heads), split_heads(self.values_l_proj(l), heads)
        mask_v, mask_l = per_head(self._tokens(attention_mask_v)), per_head(self._tokens(attention_mask_l))
        beta, alpha = soft_align(
            *(f_v, f_l, of_v, of_l), mask_a=mask_v, mask_b=mask_l, scale=self.scale, clamp=CLAMP,
            dropout=self.dropout if self.training else 0.0, backend=self.backend,
        )  # fmt: skip
        return self.out_v_proj(merge_heads(beta)), self.out_l_proj(merge_heads(alpha))

    def _tokens(self, mask: Tensor | None) -> Tensor | None:
        return mask if mask is None else (mask == 0 if self.mask_is_padding else mask != 0)
