"""CUDA graphs of training steps and of inference on ragged batches.

At these sizes a GPU waits for its launches. A graph replays them all at once, but only for tensors of the very sizes it
was recorded with: so a batch is filled up to one of a few sizes with pairs that count for nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .pair_batch import PairBatch

IGNORED = -100  # a label that torch's losses leave out


class Size(NamedTuple):
    """Of a filled batch."""

    pairs: int
    tokens_a: int
    tokens_b: int
    max_length_a: int
    max_length_b: int


def size_of(batch: PairBatch) -> Size:
    """The size to fill a batch up to: at most a quarter more tokens, longest sentences of a power of two."""
    tokens = [_round_up(max(16, ids.shape[0])) for ids in (batch.ids_a, batch.ids_b)]
    longest = [1 << max(4, (n - 1).bit_length()) for n in (batch.max_length_a, batch.max_length_b)]
    sides = zip(tokens, (batch.ids_a, batch.ids_b), longest, strict=True)
    more = max(-(-(t - ids.shape[0]) // most) for t, ids, most in sides)
    return Size(_round_up(len(batch) + more), *tokens, *longest)


def fill(batch: PairBatch, size: Size) -> PairBatch:
    """The batch with tokens of id 0 in further pairs, up to `size`; the first pairs are the batch's own.

    Works on the batch's device, without waiting for it.

    Raises:
        ValueError: the batch has more than that, or leaves too few pairs for the tokens that are missing.
    """
    ids_a, offsets_a, lengths_a = _filled("a", batch, size.pairs, size.tokens_a, size.max_length_a)
    ids_b, offsets_b, lengths_b = _filled("b", batch, size.pairs, size.tokens_b, size.max_length_b)
    return PairBatch.unchecked(
        ids_a=ids_a,
        ids_b=ids_b,
        offsets_a=offsets_a,
        offsets_b=offsets_b,
        lengths_a=lengths_a,
        lengths_b=lengths_b,
        max_length_a=size.max_length_a,
        max_length_b=size.max_length_b,
    )


def _filled(side: str, batch: PairBatch, pairs: int, tokens: int, longest: int) -> tuple[Tensor, Tensor, Tensor]:
    ids, offsets = getattr(batch, f"ids_{side}"), getattr(batch, f"offsets_{side}")
    lengths, total, more = getattr(batch, f"lengths_{side}"), ids.shape[0], pairs - len(batch)
    missing = tokens - total
    if missing < 0 or more < 0 or more * longest < missing or getattr(batch, f"max_length_{side}") > longest:
        raise ValueError(
            f"{len(batch)} pairs with {total} tokens on side {side}, at most {getattr(batch, f'max_length_{side}')} "
            f"each, can't be filled up to {pairs} pairs with {tokens} tokens, at most {longest} each"
        )
    # evenly: one of the longest length on both sides might be the batch's longest pair, and another kernel's
    ends = [torch.arange(1, more + 1, device=d) * missing // max(more, 1) for d in (offsets.device, "cpu")]
    steps = torch.diff(ends[1], prepend=torch.zeros(1, dtype=ends[1].dtype, device="cpu"))
    return (
        torch.cat([ids, ids.new_zeros(missing)]),
        torch.cat([offsets, (ends[0] + total).to(offsets.dtype)]),
        torch.cat([lengths, steps.to(lengths.dtype)]),
    )


def longest_pair(batch: PairBatch) -> int:
    """The least power of two that no pair's tokens, both sides together, exceed.

    Which of a frozen model's kernels are launched follows from it: a graph of launches for shorter pairs would leave
    a longer pair's scores unwritten.
    """
    return 1 << max(0, batch.most_tokens - 1).bit_length()


def _round_up(n: int) -> int:
    """The least of 4, 5, 6 or 7 times a power of two that is n or more."""
    step = 1 << max(0, (n - 1).bit_length() - 3)
    return -(-n // step) * step


class GraphedTraining:
    """Training steps (zero_grad, forward, loss, backward, step) of a model on a GPU, recorded once for each size.

        step = GraphedTraining(model, torch.optim.Adam(model.parameters(), fused=True, capturable=True))
        loss = step(batch, labels)

    The numbers are those of steps without graphs, up to rounding and to what dropout draws. The first step, and those
    of further sizes once there are `most` of them, run without a graph, and on a CPU all do. Gradients belong to the
    graphs: don't change them between steps. Numbers of the optimiser's that are no tensors, and modes, are part of a
    recording, and once they change it is another one's turn: let a learning rate that is scheduled be a tensor,
    `lr=torch.tensor(1e-3, device="cuda")`, which recordings read; one of the CPU's counts as a plain number. The step
    after parameters are added or begin to need gradients runs without a graph, and makes the optimiser's state.

    Args:
        model: takes a `PairBatch`. optimizer: on a GPU one that can be captured.
        loss: of scores (pairs, classes) and labels (pairs,), leaving labels of -100 out of its mean.
        autocast: a dtype, or None. most: sizes, times modes and the optimiser's numbers, that are recorded.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        loss: Callable[[Tensor, Tensor], Tensor] = F.cross_entropy,
        *,
        autocast: torch.dtype | None = None,
        most: int = 64,
    ) -> None:
        self.model, self.optimizer, self.loss, self.autocast = model, optimizer, loss, autocast
        self._graphs = _Graphs(most)
        self._have_state: set[int] = set()  # parameters that the optimiser has taken a step with

    def __call__(self, batch: PairBatch, labels: Tensor) -> Tensor:
        """The loss of the step, on the model's device; nobody waits for it.

        Raises:
            ValueError: batch, labels and model are not on one device.
        """
        device = _device(self.model, batch, labels)
        learned = [p for group in self.optimizer.param_groups for p in group["params"] if p.requires_grad]
        if device.type != "cuda" or not self._have_state.issuperset(map(id, learned)):
            loss = self._step(batch, labels, update=True)
            self._have_state = set(map(id, learned))
            return loss
        kept = (t for p in learned for t in self.optimizer.state.get(p, {}).values() if isinstance(t, Tensor))
        state = (_modes(self.model), _numbers(self.optimizer), *map(id, learned), *(t.data_ptr() for t in kept))
        return self._graphs.run(batch, labels, state, self._step, lambda found: found.clone())

    def _step(self, batch: PairBatch, labels: Tensor, update: bool) -> Tensor:
        self.optimizer.zero_grad(set_to_none=True)
        with torch.autocast(labels.device.type, self.autocast, enabled=self.autocast is not None):
            scores = self.model(batch)
        loss = self.loss(scores if scores.dtype == torch.float64 else scores.float(), labels)
        loss.backward()
        if update:
            self.optimizer.step()
        return loss.detach()


class GraphedInference:
    """Scores of a model, frozen or not, on a GPU, recorded once for each size; on a CPU the model is just called.

    model: takes a `PairBatch`. most: sizes, times modes, that are recorded; further ones run without a graph. The
    parameters may be changed in place between calls, not exchanged.
    """

    def __init__(self, model: nn.Module, *, most: int = 64) -> None:
        self.model = model
        self._graphs = _Graphs(most)

    @torch.no_grad()
    def __call__(self, batch: PairBatch) -> Tensor:
        """The scores, (pairs, classes).

        Raises:
            ValueError: batch and model are not on one device.
        """
        if _device(self.model, batch).type != "cuda":
            found: Tensor = self.model(batch)
            return found
        pairs = len(batch)

        def scores(filled: PairBatch, *_: Any) -> Tensor:
            found: Tensor = self.model(filled)
            return found

        return self._graphs.run(batch, None, _modes(self.model), scores, lambda found: found[:pairs].clone())


class _Graphs:
    """Recorded runs by size, with the tensors that they read and write."""

    def __init__(self, most: int) -> None:
        self.most = most
        self._recorded: dict[Any, tuple[torch.cuda.CUDAGraph, list[Tensor], Tensor]] = {}
        self._pool: Any = None
        self._stream: torch.cuda.Stream | None = None

    def run(
        self,
        batch: PairBatch,
        labels: Tensor | None,
        state: Any,
        step: Callable[..., Tensor],
        take: Callable[[Tensor], Tensor],
    ) -> Tensor:
        """state: what else a recording holds for."""
        with torch.cuda.device(batch.device):  # whose kernels a graph records
            return take(self._run(batch, labels, state, step))

    def _run(self, batch: PairBatch, labels: Tensor | None, state: Any, step: Callable[..., Tensor]) -> Tensor:
        size = size_of(batch)
        with torch.inference_mode(False):  # what is written in place later may not be of inference mode
            filled = fill(batch, size)
            if labels is not None:
                labels = F.pad(labels, (0, size.pairs - len(batch)), value=IGNORED)
        key = (size, longest_pair(filled), batch.ids_a.dtype, batch.ids_b.dtype, state)
        given = [t for t in (filled.ids_a, filled.ids_b, filled.offsets_a, filled.offsets_b, labels) if t is not None]
        if key not in self._recorded:
            if len(self._recorded) >= self.most:
                return step(filled, labels, True)
            self._recorded[key] = self._record(filled, labels, given, step)
        graph, read, written = self._recorded[key]
        for to, t in zip(read, given, strict=True):
            to.copy_(t, non_blocking=True)
        graph.replay()
        return written

    def _record(
        self, batch: PairBatch, labels: Tensor | None, given: list[Tensor], step: Callable[..., Tensor]
    ) -> tuple[torch.cuda.CUDAGraph, list[Tensor], Tensor]:
        """Run once without an update, for what kernels compile and libraries allocate; then record."""
        if self._stream is None:
            self._pool, self._stream = torch.cuda.graph_pool_handle(), torch.cuda.Stream()
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            step(batch, labels, False)
        torch.cuda.current_stream().wait_stream(self._stream)
        graph = torch.cuda.CUDAGraph()
        # A caller's autocast keeps weights in half precision for as long as it lasts: a recording makes its own, and
        # nobody else reads those.
        torch.clear_autocast_cache()
        # on a stream of ours, for torch's own is one of whichever device was the first to record
        with torch.cuda.graph(graph, pool=self._pool, stream=self._stream):
            written = step(batch, labels, True)
        torch.clear_autocast_cache()
        return graph, given, written


def _modes(model: nn.Module) -> tuple[Any, ...]:
    """What decides, beside the batch, what a model does."""
    return (
        tuple(layer.training for layer in model.modules()),
        getattr(model, "backend", None),
        torch.is_autocast_enabled("cuda") and torch.get_autocast_dtype("cuda"),
        torch.backends.cuda.matmul.fp32_precision,
    )


def _numbers(optimizer: torch.optim.Optimizer) -> tuple[Any, ...]:
    """What an optimiser hands to its kernels as plain numbers: tensors of the CPU are, too."""
    return tuple(
        (name, value.item() if isinstance(value, Tensor) else value)
        for group in optimizer.param_groups
        for name, value in sorted(group.items())
        if isinstance(value, (bool, int, float, tuple))
        or (isinstance(value, Tensor) and value.is_cpu and value.numel() == 1)
    )


def _device(model: nn.Module, batch: PairBatch, labels: Tensor | None = None) -> torch.device:
    device = next(iter([*model.parameters(), *model.buffers()])).device
    for name, t in (("the batch", batch.ids_a), ("labels", labels)):
        if t is not None and t.device != device:
            raise ValueError(f"{name} must be on {device}, like the model, not on {t.device}")
    return device
