"""Cross-graph attention of Graph Matching Networks (Li et al. 2019, section 3.2, equations 10 and 11)."""

from __future__ import annotations

from typing import Literal, SupportsIndex

import torch
from torch import Tensor, nn

from ...kernels import soft_align_packed
from ...kernels.checks import check_kind
from ..segments import offsets_of

Similarity = Literal["dotproduct", "cosine", "euclidean"]


class CrossGraphAttention(nn.Module):
    """What every node's partner graph holds for it: stands for batch_block_pair_attention, with no loop over pairs.

    Graphs 2p and 2p + 1 are a pair. A layer of a Graph Matching Network subtracts the result from the node states.

    Args:
        similarity: "dotproduct", "cosine" (of vectors no shorter than 1e-6), or "euclidean" (−|x − y|²).
    """

    backend: str | None = None

    def __init__(self, similarity: Similarity = "dotproduct"):
        super().__init__()
        if similarity not in ("dotproduct", "cosine", "euclidean"):
            raise ValueError(f"similarity must be 'dotproduct', 'cosine' or 'euclidean', not {similarity!r}")
        self.similarity = similarity

    def forward(self, node_states: Tensor, graph_idx: Tensor, n_graphs: int) -> Tensor:
        """node_states (nodes, d), graph_idx (nodes,) integers -> the partner's states, aligned, (nodes, d).

        A node whose partner graph has no nodes receives 0. Nodes may come in any order. The graphs' sizes are
        brought to the host once.

        Raises:
            TypeError: node_states or graph_idx is no tensor, graph_idx holds no integers, n_graphs is none.
            ValueError: n_graphs is odd or below 0, node_states has no two dimensions, graph_idx has another length
                or names a graph that there is not; others as of `soft_align_packed`.
        """
        check_kind("node_states", node_states)
        check_kind("graph_idx", graph_idx)
        if node_states.ndim != 2:
            raise ValueError(f"node_states must be (nodes, d), not {tuple(node_states.shape)}")
        if not isinstance(n_graphs, SupportsIndex):
            raise TypeError(f"n_graphs must be an int, not {type(n_graphs).__name__}")
        if n_graphs < 0 or n_graphs % 2:
            raise ValueError(f"graphs come in pairs: n_graphs must be even, not {n_graphs}")
        if graph_idx.shape != node_states.shape[:1]:
            raise ValueError(f"graph_idx must be {tuple(node_states.shape[:1])}, not {tuple(graph_idx.shape)}")
        if graph_idx.is_floating_point() or graph_idx.is_complex() or graph_idx.dtype == torch.bool:
            raise TypeError(f"graph_idx must be integers, not {graph_idx.dtype}")
        if graph_idx.numel() == 0:
            return node_states * 0
        if graph_idx.is_cpu and int(graph_idx.min()) < 0:  # a GPU says so itself
            raise ValueError(f"graph_idx names graph {int(graph_idx.min())}, but they are counted from 0")
        # the nodes of graphs that there are not are counted as one pair more's, in which there should be none
        sizes = torch.bincount(graph_idx.long().clamp(max=n_graphs), minlength=n_graphs + 2)
        longest_a, longest_b, beyond = torch.cat([sizes.view(-1, 2).amax(0), sizes[-2:-1]]).tolist()
        if beyond:
            raise ValueError(f"graph_idx names graph {int(graph_idx.max())}, but there are {n_graphs}")
        order = torch.argsort(graph_idx, stable=True)
        of_a = graph_idx[order] % 2 == 0
        rows_a, rows_b = order[of_a], order[~of_a]
        a, b = node_states[rows_a], node_states[rows_b]
        found = soft_align_packed(
            *self._features(a, b), a, b, offsets_of(sizes[:-2:2]), offsets_of(sizes[1:-2:2]), longest_a, longest_b,
            backend=self.backend,
        )  # fmt: skip
        return torch.cat([found.beta, found.alpha])[torch.argsort(torch.cat([rows_a, rows_b]))]

    def _features(self, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        """What to multiply so that the product is the similarity."""
        if self.similarity == "cosine":
            return nn.functional.normalize(a, dim=-1, eps=1e-6), nn.functional.normalize(b, dim=-1, eps=1e-6)
        if self.similarity == "euclidean":  # 2 x·y − |x|² − |y|²
            one_a, one_b = a.new_ones(a.shape[0], 1), b.new_ones(b.shape[0], 1)
            square_a, square_b = a.square().sum(-1, keepdim=True), b.square().sum(-1, keepdim=True)
            return torch.cat([2 * a, -square_a, one_a], -1), torch.cat([b, one_b, -square_b], -1)
        return a, b
