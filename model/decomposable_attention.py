"""The Decomposable Attention model: attend, compare, aggregate (Parikh et al. 2016; d2l's drop-in)."""

from __future__ import annotations

from collections.abc import Sized

import torch
from torch import Tensor, nn

from ..kernels import autocast
from ..kernels.ops import unobserved
from ..kernels.transforms import overriding
from . import inference, plain
from .aggregate import Aggregate
from .as_made import exchanged, is_as_made
from .attend import Attend
from .compare import Compare
from .frozen import FrozenDecomposableAttention
from .ids import Pair, check_ids, padded_pair
from .intra_attention import IntraAttention
from .masks import as_mask
from .mlp import FeedForward, are_hooked
from .pair_batch import PairBatch


class DecomposableAttention(nn.Module):
    """d2l's DecomposableAttention: same constructor, call, parameter names and numbers.

    Args:
        vocab: anything with a length, the number of token ids. embed_size: width of a word's vector.
        num_hiddens: width of f, g and h.
        num_inputs_attend, num_inputs_compare, num_inputs_agg: must be embed_size (or projection_size; twice either
            with intra_attention), twice that, and 2 num_hiddens; they are arguments because they are d2l's.
            `from_sizes` does without.
        num_classes: number of class scores.
        projection_size: the width to which words' vectors are first projected, linearly and without a bias (Parikh
            et al. 2016, section 4). None, d2l's behaviour: they are taken as they are.
        intra_attention: whether each word is first joined with its own sentence's words (`IntraAttention`; Parikh et
            al. 2016, section 3.4). f and g then take vectors twice as wide, and the model can't be frozen.
        padding_idx: the token id that stands for padding. Given, it is masked in attention and sums wherever
            a call brings no masks or lengths of its own, and its vector is never trained (torch's
            padding_idx; a loaded state dict keeps its value). None, d2l's behaviour: nothing is masked.
        dropout: before each linear layer, while training.
        backend: "reference" runs the whole model in plain PyTorch; any other is `coalign.soft_align`'s.

    Raises:
        ValueError: sizes below 1, or that do not fit one another.
    """

    def __init__(
        self,
        vocab: Sized,
        embed_size: int,
        num_hiddens: int,
        num_inputs_attend: int = 100,
        num_inputs_compare: int = 200,
        num_inputs_agg: int = 400,
        *,
        num_classes: int = 3,
        projection_size: int | None = None,
        intra_attention: bool = False,
        padding_idx: int | None = None,
        dropout: float = 0.2,
        backend: str | None = None,
    ) -> None:
        super().__init__()
        for name, size in (
            ("len(vocab)", len(vocab)),
            ("embed_size", embed_size),
            ("num_hiddens", num_hiddens),
            ("num_classes", num_classes),
            ("projection_size", projection_size),
        ):
            if size is not None and size < 1:
                raise ValueError(f"{name} must be 1 or more, not {size}")
        word_width, own_name = (
            (embed_size, "embed_size") if projection_size is None else (projection_size, "projection_size")
        )
        width, width_name = (2 * word_width, f"2 * {own_name}") if intra_attention else (word_width, own_name)
        for name, given, expected, meaning in (
            ("num_inputs_attend", num_inputs_attend, width, width_name),
            ("num_inputs_compare", num_inputs_compare, 2 * width, f"{4 if intra_attention else 2} * {own_name}"),
            ("num_inputs_agg", num_inputs_agg, 2 * num_hiddens, "2 * num_hiddens"),
        ):
            if given != expected:
                raise ValueError(f"{name} must be {meaning} = {expected}, not {given}; or use from_sizes")
        if padding_idx is not None and not 0 <= padding_idx < len(vocab):
            raise ValueError(f"padding_idx must lie between 0 and {len(vocab) - 1}, not {padding_idx}")
        self.padding_idx = padding_idx  # here too, for the embedding may be exchanged
        self.embedding = nn.Embedding(len(vocab), embed_size, padding_idx=padding_idx)
        self.projection = None if projection_size is None else nn.Linear(embed_size, projection_size, bias=False)
        self.intra_attention = (
            IntraAttention(word_width, num_hiddens, dropout=dropout, backend=backend) if intra_attention else None
        )
        self.attend = Attend(num_inputs_attend, num_hiddens, dropout=dropout, backend=backend)
        self.compare = Compare(num_inputs_compare, num_hiddens, dropout=dropout)
        self.aggregate = Aggregate(num_inputs_agg, num_hiddens, num_classes, dropout=dropout)
        self.backend = backend

    @classmethod
    def from_sizes(
        cls,
        vocab_size: int,
        embed_size: int = 100,
        num_hiddens: int = 200,
        *,
        num_classes: int = 3,
        projection_size: int | None = None,
        intra_attention: bool = False,
        padding_idx: int | None = None,
        dropout: float = 0.2,
        backend: str | None = None,
    ) -> DecomposableAttention:
        """The model of these sizes, for those who have no vocabulary object. Arguments as in the class."""
        width = (projection_size or embed_size) * (2 if intra_attention else 1)
        return cls(
            range(vocab_size),
            embed_size,
            num_hiddens,
            num_inputs_attend=width,
            num_inputs_compare=2 * width,
            num_inputs_agg=2 * num_hiddens,
            num_classes=num_classes,
            projection_size=projection_size,
            intra_attention=intra_attention,
            padding_idx=padding_idx,
            dropout=dropout,
            backend=backend,
        )

    @property
    def backend(self) -> str | None:
        """What runs the model; may be set at any time, and parameters stay as they are."""
        chosen: str | None = getattr(self.attend, "backend", None)  # there may be another layer in its place
        return chosen

    @backend.setter
    def backend(self, name: str | None) -> None:
        for layer in (self.attend, self.intra_attention):
            if layer is not None:
                layer.backend = name
        for network in self.modules():
            if isinstance(network, FeedForward):
                network.backend = name

    def forward(
        self, X: tuple[Tensor, Tensor] | PairBatch, *, masks: Pair | None = None, lengths: Pair | None = None
    ) -> Tensor:
        """Class scores of pairs of sentences.

        Args:
            X: premises (batch, m) and hypotheses (batch, n), integer token ids; or a `PairBatch`, all of whose ids
                are tokens: only they are computed with, and the result is that of masked padding. On the CPU padded
                ids that are masked are packed first, and without gradients a sentence's equal words, padding that
                nothing masks too, are computed with once.
            masks: for each side (batch, length) bool, True for a token, or None.
            lengths: for each side (batch,) int32 or int64, or None. A side takes a mask or lengths, not both; given
                for either side, they replace padding_idx for both.

        Returns:
            (batch, num_classes), not normalised.

        Raises:
            TypeError, ValueError: ids, masks or lengths of the wrong kind or shape.
            IndexError: a token id outside the vocabulary (checked on the CPU; on a GPU, torch asserts).
        """
        if isinstance(X, PairBatch):
            if masks is not None or lengths is not None:
                raise ValueError("a PairBatch knows its lengths and has no padding: give it no masks or lengths")
            if self.backend != "reference":
                return self._packed_scores(X)
        premises, hypotheses, extents = self._checked(X, masks, lengths)
        masked = any(t is not None for t in extents.values())
        if self._can_be_packed(premises) and (masked or not self._learns_words()):
            sides = [(extents[f"{kind}_a"], extents[f"{kind}_b"]) for kind in ("mask", "lengths")]
            packed = PairBatch.from_padded(premises, hypotheses, masks=sides[0], lengths=sides[1])
            if masked:
                return self._packed_scores(packed)
            if (scores := self._inferred(packed)) is not None:  # which computes with a sentence's equal words once
                return scores
        A, B = self._embed(premises, hypotheses, extents)
        given = {name: t for name, t in extents.items() if t is not None}  # d2l's own layers take none of them
        beta, alpha = self.attend(A, B, **given)
        V_A, V_B = self.compare(A, B, beta, alpha, **given)
        return self.aggregate(V_A, V_B)

    def _can_be_packed(self, premises: Tensor) -> bool:
        """Whether padding may be taken out first: where that needs no waiting, and nobody looks at what is inside."""
        return (
            self.backend != "reference"
            and premises.device.type == "cpu"
            and not self._is_observed(premises)
            and not self.embedding.scale_grad_by_freq  # of padding too
        )

    def _is_observed(self, ids: Tensor) -> bool:
        """Whether somebody looks at what is inside, or has put something else there: it may look at a word's
        neighbours, which in a packed batch are another sentence's."""
        if exchanged(self) is not None or not unobserved((ids, self.embedding.weight)) or overriding():
            return True
        own = self.intra_attention
        return own is not None and (type(own) is not IntraAttention or are_hooked(own) or not is_as_made(own.f))

    def _learns_words(self) -> bool:
        """Whether words' vectors get gradients: then nothing is inferred, and packing would take 0.2 ms for nothing."""
        return torch.is_grad_enabled() and self.embedding.weight.requires_grad

    def _inferred(self, X: PairBatch) -> Tensor | None:
        """The scores where nobody wants gradients of them, on the CPU; else None."""
        return inference.scores(self, X) if X.device.type == "cpu" and unobserved((X.ids_a, X.ids_b)) else None

    def _packed_scores(self, X: PairBatch) -> Tensor:
        if (scores := self._inferred(X)) is not None:
            return scores
        check_ids("premises", X.ids_a, self._words(), ndim=1)
        check_ids("hypotheses", X.ids_b, self._words(), ndim=1)
        if getattr(self.embedding, "scale_grad_by_freq", False):  # how often a word is there counts a side at a time
            words = torch.cat([self._vectors(X.ids_a, None), self._vectors(X.ids_b, None)])
        else:  # one look-up for both: its gradient is as large as the vocabulary, and so not made twice and added
            words = self._vectors(torch.cat([X.ids_a, X.ids_b]), None)
        if autocast.enabled(words.device.type) and words.dtype == torch.float32:
            words = words.to(torch.get_autocast_dtype(words.device.type))  # once, for all that would each do it
        A, B = words.split([X.ids_a.shape[0], X.ids_b.shape[0]])
        if self.intra_attention is not None:
            A = self.intra_attention(A, offsets=X.offsets_a, max_length=X.max_length_a)
            B = self.intra_attention(B, offsets=X.offsets_b, max_length=X.max_length_b)
        beta, alpha = self.attend(
            A,
            B,
            offsets_a=X.offsets_a,
            offsets_b=X.offsets_b,
            max_length_a=X.max_length_a,
            max_length_b=X.max_length_b,
        )
        V_A, V_B = self.compare(A, B, beta, alpha, offsets_a=X.offsets_a, offsets_b=X.offsets_b)
        return self.aggregate(V_A, V_B)

    def freeze(self, dtype: torch.dtype = torch.float32) -> FrozenDecomposableAttention:
        """For inference: all that depends on one word alone computed for the whole vocabulary, once.

        The result takes what `forward` takes and gives the same scores up to rounding, on the CPU several times as
        fast, whatever `training` says here. It does not follow later changes of this model.

        dtype: of the table and the weights, float32 or bfloat16; the table has 3 num_hiddens numbers a word.

        Raises:
            TypeError, ValueError: as `FrozenDecomposableAttention` does.
        """
        return FrozenDecomposableAttention(self, dtype)

    def alignment(
        self, X: tuple[Tensor, Tensor] | PairBatch, *, masks: Pair | None = None, lengths: Pair | None = None
    ) -> tuple[Tensor, Tensor]:
        """The two soft alignments, to look at: (batch, m, n) each, as `Attend.weights` gives them.

        A `PairBatch` is padded for it, to max_length_a and max_length_b.
        """
        premises, hypotheses, extents = self._checked(X, masks, lengths)
        A, B = self._embed(premises, hypotheses, extents)
        return self.attend.weights(A, B, **extents)

    def compared(
        self, X: tuple[Tensor, Tensor] | PairBatch, *, masks: Pair | None = None, lengths: Pair | None = None
    ) -> tuple[Tensor, Tensor]:
        """What `Aggregate` is given the sums of, to look at: v_a (batch, m, num_hiddens) and v_b (batch, n,
        num_hiddens), g of each word and what is aligned to it (Parikh et al. 2016, equation 3); 0 for padding.

        A `PairBatch` is padded for it, as in `alignment`.
        """
        premises, hypotheses, extents = self._checked(X, masks, lengths)
        A, B = self._embed(premises, hypotheses, extents)
        beta, alpha = self.attend(A, B, **extents)
        v_a, v_b = (self.compare.g(torch.cat(side, dim=-1)) for side in ((A, beta), (B, alpha)))
        mask_a = as_mask("a", v_a, extents["mask_a"], extents["lengths_a"])
        mask_b = as_mask("b", v_b, extents["mask_b"], extents["lengths_b"])
        return plain.keep(v_a, mask_a), plain.keep(v_b, mask_b)

    def _checked(
        self, X: tuple[Tensor, Tensor] | PairBatch, masks: Pair | None, lengths: Pair | None
    ) -> tuple[Tensor, Tensor, dict[str, Tensor | None]]:
        """Padded ids, and what says which of them are tokens."""
        return padded_pair(X, masks, lengths, self.padding_idx, self._words())

    def _words(self) -> int | None:
        """How many words the embedding has, where it says so."""
        weight = getattr(self.embedding, "weight", None)
        return weight.shape[0] if isinstance(weight, Tensor) and weight.ndim == 2 else None

    def _embed(self, premises: Tensor, hypotheses: Tensor, extents: dict[str, Tensor | None]) -> tuple[Tensor, Tensor]:
        """The words' vectors on both sides, with what each aligns to in its own sentence where the model does that."""
        A, B = (
            self._vectors(ids, self._projected_mask(letter, ids, extents))
            for letter, ids in (("a", premises), ("b", hypotheses))
        )
        if self.intra_attention is None:
            return A, B
        return (
            self.intra_attention(A, mask=extents["mask_a"], lengths=extents["lengths_a"]),
            self.intra_attention(B, mask=extents["mask_b"], lengths=extents["lengths_b"]),
        )

    def _projected_mask(self, letter: str, ids: Tensor, extents: dict[str, Tensor | None]) -> Tensor | None:
        """What keeps padding out of the projection's gradient, where there is a projection."""
        if self.projection is None:
            return None
        return as_mask(letter, ids.unsqueeze(-1), extents[f"mask_{letter}"], extents[f"lengths_{letter}"])

    def _vectors(self, ids: Tensor, mask: Tensor | None) -> Tensor:
        """The words' vectors, projected where the model does; mask: which are tokens."""
        vectors = self.embedding(ids)
        return vectors if self.projection is None else self.projection(plain.keep(vectors, mask))
