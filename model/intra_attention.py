"""Intra-sentence attention: each word with the words of its own sentence (Parikh et al. 2016, section 3.4)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..kernels import soft_align
from ..kernels.ops import unobserved
from . import plain
from .masks import as_mask, check_offsets, check_sentences
from .mlp import mlp
from .segments import padded_places, sentence_of_token

MOST_PADDING = 4  # padded rows for each word: beyond, sentences are padded to the longest of like length
SHORT = 16  # words: sentences up to here are of like length, and others up to twice the shortest
FARTHEST = 10  # words; all that are farther from one another share this distance's bias (section 3.4)


class IntraAttention(nn.Module):
    """a' = [a; Σ_j softmax_j(f_ij + d_{i-j}) a_j] with f_ij = F_intra(a_i)ᵀ F_intra(a_j).

    d is learned, one number for each distance of 0 to 10 words, to the left as to the right; all farther words have
    that of 10. The scores are symmetric, so the two directions of `coalign.soft_align` are the same: one is used.

    Args:
        num_inputs: width of the words' vectors. num_hiddens: width of F_intra.
        dropout: before each linear layer of F_intra, while training.
        backend: of `coalign.soft_align`; "reference" is the plain PyTorch of `coalign.model.plain`.
    """

    def __init__(self, num_inputs: int, num_hiddens: int, *, dropout: float = 0.2, backend: str | None = None) -> None:
        super().__init__()
        self.f = mlp(num_inputs, num_hiddens, flatten=False, dropout=dropout)
        self.distance_bias = nn.Parameter(torch.zeros(FARTHEST + 1))
        self.backend = self.f.backend = backend

    def forward(
        self,
        A: Tensor,
        *,
        mask: Tensor | None = None,
        lengths: Tensor | None = None,
        offsets: Tensor | None = None,
        max_length: int | None = None,
    ) -> Tensor:
        """A (batch, m, num_inputs) -> (batch, m, 2 num_inputs); the second half of padding's rows is 0.

        mask (batch, m) bool, True for a token; lengths (batch,) int32 or int64; with neither nothing is masked.
        Distances are counted in tokens, so that padding never matters, wherever it stands. With offsets
        (sentences + 1,) and max_length the sentences are packed, A (total, num_inputs) -> (total, 2 num_inputs).

        Raises:
            TypeError, ValueError, coalign.BackendUnavailable: as `coalign.soft_align` does.
        """
        check_sentences("A", A, packed=offsets is not None)
        if offsets is not None:
            if mask is not None or lengths is not None:
                raise ValueError("packed sentences have no padding: give offsets, or a mask or lengths, not both")
            if max_length is None:
                raise ValueError("packed sentences need max_length")
            check_offsets("", offsets, A.shape[0], max_length)
            return torch.cat([A, self._packed(A, offsets, max_length).to(A.dtype)], dim=-1)
        keep = as_mask("", A, mask, lengths)
        bias = self._bias(A.shape[1], A.device, mask)
        if self.backend == "reference":
            return torch.cat([A, plain.intra_attend(self.f, A, bias, keep)], dim=-1)
        A = plain.keep(A, keep)
        aligned = self._aligned(self.f(A), A, bias, mask, lengths)
        return torch.cat([A, aligned.to(A.dtype)], dim=-1)

    def _packed(self, A: Tensor, offsets: Tensor, longest: int) -> Tensor:
        """What is aligned to each word of packed sentences: F_intra of tokens only.

        Sentences are padded for the alignment, all to the longest, or, on the CPU and where that would be mostly
        padding, those of like lengths to the longest of these.
        """
        f = self.f(A)
        padded_rows = (offsets.shape[0] - 1) * longest
        if not A.is_cpu or not unobserved((A, offsets)) or padded_rows <= MOST_PADDING * A.shape[0] or not len(A):
            return self._padded(f, A, offsets, longest)
        lengths, sentence = offsets.diff(), sentence_of_token(offsets, A.shape[0])
        places, found, low, high = [], [], 0, SHORT
        while low < int(lengths.max()):
            chosen = (lengths > low) & (lengths <= high)
            if chosen.any():
                tokens = chosen[sentence].nonzero().squeeze(1)
                ends = lengths[chosen].cumsum(0, dtype=torch.int32)
                own = torch.cat([ends.new_zeros(1), ends])
                places.append(tokens)
                found.append(self._padded(f[tokens], A[tokens], own, int(lengths[chosen].max())))
            low, high = high, 2 * high
        return torch.empty_like(torch.cat(found)).index_copy(0, torch.cat(places), torch.cat(found))

    def _padded(self, f: Tensor, A: Tensor, offsets: Tensor, longest: int) -> Tensor:
        """Packed words' alignment with their own sentences, by way of sentences padded to so many words."""
        places = padded_places(offsets, A.shape[0], longest)
        sentences, lengths = offsets.shape[0] - 1, offsets.diff()

        def pad(x: Tensor) -> Tensor:
            empty = x.new_zeros(sentences * longest, x.shape[-1])
            return empty.index_copy(0, places, x).reshape(sentences, longest, x.shape[-1])

        aligned = self._aligned(pad(f), pad(A), self._bias(longest, A.device, None), None, lengths)
        return aligned.flatten(0, 1).index_select(0, places)

    def _aligned(self, f: Tensor, a: Tensor, bias: Tensor, mask: Tensor | None, lengths: Tensor | None) -> Tensor:
        """Padded sentences (batch, m, width) aligned with themselves."""
        found = soft_align(
            f,
            f,
            a,
            a,
            mask_a=mask,
            mask_b=mask,
            lengths_a=lengths,
            lengths_b=lengths,
            bias=bias.to(f.dtype),
            backend=self.backend,
        )
        return found.beta

    def _bias(self, length: int, device: torch.device, mask: Tensor | None) -> Tensor:
        """d_{i-j}: (length, length), or (batch, length, length) where a mask may leave gaps."""
        place = torch.arange(length, device=device) if mask is None else mask.cumsum(1)
        distances = (place.unsqueeze(-1) - place.unsqueeze(-2)).abs().clamp(max=FARTHEST)
        return self.distance_bias[distances]
