"""The frozen model: inference from tables of words (Parikh et al. 2016, with what depends on one word precomputed)."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import safetensors
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..kernels import BackendUnavailable, autocast
from ..kernels.dispatch import requested
from ..kernels.native import cuda_frozen as cuda
from ..kernels.native import frozen as native
from ..kernels.ops import unobserved
from ..kernels.transforms import overriding
from ..kernels.triton import frozen as triton
from ..kernels.triton import interprets
from . import plain
from .as_made import exchanged
from .atomic import save_tensors
from .ids import Pair, check_ids, padded_pair, tokens_first
from .masks import as_mask, check_mask
from .pair_batch import PairBatch

if TYPE_CHECKING:
    from .decomposable_attention import DecomposableAttention

FORMAT = "coalign.frozen/1"
DTYPES = (torch.float32, torch.bfloat16)
LAYERS = ("compare", "first", "second", "output")
_INPUTS = ("premises", "hypotheses", "the premises' mask or lengths", "the hypotheses' mask or lengths")
GPU_KERNELS: dict[str, ModuleType] = {"triton": triton, "native": cuda}  # each has unsupported() and sums()
_NOTHING: tuple[Any, Any, Any] = (), None, None  # derived of no buffers yet
CHUNK = 8192  # words computed at a time: bounds what freezing needs beside the table


class FrozenDecomposableAttention(nn.Module):
    """`DecomposableAttention` for inference: same call, same scores up to rounding. `DecomposableAttention.freeze`
    and `load` make one.

    With W_a, W_b the halves of the first layer of g, the table holds for every word w, of vector E_w,

        F = f(E_w)      G_a = W_a E_w + bias      G_b = W_b E_w

    so that a pair costs look-ups, e = F_a F_bᵀ, its softmaxes P and Q, relu(G_a + P G_b), the second layer of g,
    sums and the classifier. On the CPU that is one C++ kernel. On a GPU all but the classifier is one kernel, in Triton
    or in CUDA C++, but for very long pairs, padding included, or a very large num_hiddens; there a word outside the
    vocabulary makes its pair's scores NaN. Elsewhere, and where a compiler or `torch.export` traces the model, it is
    plain PyTorch.

    Buffers: table (words, 3 num_hiddens); weights and biases of the layers that are left. Biases are float32. They may
    change; after changes that leave no sign (of `t.data`, of a NumPy view, by torch.distributed's collectives)
    `model.load_state_dict(model.state_dict())` has the kernels look at them anew.

    Args:
        model: what is frozen. dtype: of table and weights, float32 or bfloat16.

    Raises:
        ValueError: another dtype, or a model with intra-sentence attention, in which nothing but the look-up depends
            on one word alone. TypeError: a model some of whose layers were exchanged, have hooks, or are sharded.
    """

    def __init__(self, model: DecomposableAttention, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        if dtype not in DTYPES:
            raise ValueError(f"a model can be frozen in torch.float32 or torch.bfloat16, not in {dtype}")
        if model.intra_attention is not None:
            raise ValueError(
                "a model with intra_attention can't be frozen: its words' vectors depend on the whole sentence"
            )
        if name := exchanged(model):
            raise TypeError(f"{name} is not as the model was made with it: exchanged layers or hooks can't be frozen")
        for name, p in model.named_parameters():
            if type(p) is not nn.Parameter:
                raise TypeError(f"{name} is a {type(p).__name__}; gather it first: only plain tensors are frozen")
        with torch.no_grad(), autocast.off(model.embedding.weight.device.type):
            state = {"table": _vocabulary_table(model, dtype)}
            for name, linear in zip(LAYERS, _later_layers(model), strict=True):
                state[f"{name}_weight"] = linear.weight.to(dtype, copy=True)
                state[f"{name}_bias"] = linear.bias.to(torch.float32, copy=True)
        self._set_up(state, model.padding_idx, model.backend)

    def _set_up(self, state: Mapping[str, Tensor], padding_idx: int | None, backend: str | None) -> None:
        for name, t in state.items():
            with torch.inference_mode(False):  # whose tensors don't say when they change
                self.register_buffer(name, (t.clone() if t.is_inference() else t).contiguous())
        self.padding_idx = padding_idx
        self.backend = backend
        self._kept: tuple[Any, Any, Any] = _NOTHING

    table: Tensor
    compare_weight: Tensor
    compare_bias: Tensor
    output_weight: Tensor
    output_bias: Tensor

    @property
    def nbytes(self) -> int:
        """Bytes of the table and the weights."""
        return sum(t.nbytes for t in self.buffers())

    def extra_repr(self) -> str:
        words, width = self.table.shape
        return f"words={words}, num_hiddens={width // 3}, {self.table.dtype}, {self.nbytes / 2**20:.1f} MiB"

    def forward(
        self, X: tuple[Tensor, Tensor] | PairBatch, *, masks: Pair | None = None, lengths: Pair | None = None
    ) -> Tensor:
        """Class scores of pairs of sentences: arguments and errors as of `DecomposableAttention.forward`.

        Returns:
            (batch, num_classes), float32, not normalised, without gradients.
        """
        if isinstance(X, PairBatch) and (masks is not None or lengths is not None):
            raise ValueError("a PairBatch knows its lengths and has no padding: give it no masks or lengths")
        with torch.no_grad():
            table = self.table  # a module looks for its buffers in three dictionaries
            backend = self._backend(X) if unobserved((table,)) and not overriding() else "reference"
            if backend == "native" and not table.is_cuda:
                return self._native(X, masks, lengths)
            if backend != "reference":
                return self._on_gpu(X, masks, lengths, GPU_KERNELS[backend])
            return self._plain(X, masks, lengths)

    def _backend(self, X: tuple[Tensor, Tensor] | PairBatch) -> str:
        """Which backend serves such a call."""
        name, table = requested(self.backend), self.table
        if name is not None:
            candidates: tuple[str, ...] = (name,)
        else:
            candidates = tuple(GPU_KERNELS) if table.is_cuda or interprets() else ("native",)
        for candidate in candidates:
            if candidate not in GPU_KERNELS:
                return "reference"
            if candidate == "native" and not table.is_cuda:
                reasons = native.unsupported(table)
            elif (most := _most_tokens(X)) is None:
                return "reference"  # which says what is wrong with them
            else:
                reasons = GPU_KERNELS[candidate].unsupported(table, most) or self._not_finite()
            if not reasons:
                return candidate
            if name is not None:
                raise BackendUnavailable(f"backend {name!r} can't serve this call: {'; '.join(reasons)}")
        return "reference"

    def _on_gpu(
        self, X: tuple[Tensor, Tensor] | PairBatch, masks: Pair | None, lengths: Pair | None, kernel: ModuleType
    ) -> Tensor:
        words = self.table.shape[0]
        if isinstance(X, PairBatch):
            for name, ids in zip(_INPUTS, (X.ids_a, X.ids_b), strict=False):
                check_ids(name, ids, words, ndim=1)
                _check_device(name, ids, self.table)
            packed = (X.ids_a, X.offsets_a), (X.ids_b, X.offsets_b)
        else:
            a, b, given = padded_pair(X, masks, lengths, self.padding_idx, words)
            mask_a = as_mask("a", a, given["mask_a"], given["lengths_a"])
            mask_b = as_mask("b", b, given["mask_b"], given["lengths_b"])
            for name, t in zip(_INPUTS, (a, b, mask_a, mask_b), strict=True):
                if t is not None:
                    _check_device(name, t, self.table)
            packed = tokens_first(a, mask_a), tokens_first(b, mask_b)
        (ids_a, offsets_a), (ids_b, offsets_b) = packed
        found = kernel.sums(
            self.table.contiguous(),
            (ids_a.contiguous(), ids_b.contiguous()),
            (offsets_a.contiguous(), offsets_b.contiguous()),
            self.compare_weight.contiguous(),
            self.compare_bias.float().contiguous(),
            _most_tokens(X),
        )
        return self._classified(found)

    def _native(self, X: tuple[Tensor, Tensor] | PairBatch, masks: Pair | None, lengths: Pair | None) -> Tensor:
        table = self.table
        words = table.shape[0]
        extent_a: Tensor | None
        extent_b: Tensor | None
        if isinstance(X, PairBatch):
            check_ids("premises", X.ids_a, words, ndim=1, values=False)
            check_ids("hypotheses", X.ids_b, words, ndim=1, values=False)
            ids_a, ids_b = X.ids_a, X.ids_b
            extent_a, extent_b = X.offsets_a.contiguous(), X.offsets_b.contiguous()
        else:
            ids_a, ids_b, given = padded_pair(X, masks, lengths, self.padding_idx, words, values=False)
            extent_a, extent_b = _extent("a", ids_a, given), _extent("b", ids_b, given)
        for name, t in zip(_INPUTS, (ids_a, ids_b, extent_a, extent_b), strict=True):
            if t is not None:
                _check_device(name, t, table)
        found, status = native.scores(
            table.contiguous(),
            ids_a.contiguous(),
            ids_b.contiguous(),
            extent_a,
            extent_b,
            self._layers(),
            self.output_bias.shape[0],
        )
        if status == native.BAD_IDS:
            check_ids("premises", ids_a, words, ndim=ids_a.ndim)
            check_ids("hypotheses", ids_b, words, ndim=ids_b.ndim)
        check_extents(status, ids_a, ids_b)
        return found

    def _layers(self) -> list[Tensor]:
        """The weights packed for the C++ kernel."""

        def pack() -> list[Tensor]:
            _check_fit("the model", dict(self.named_buffers()))
            return [native.pack(getattr(self, f"{name}_weight"), getattr(self, f"{name}_bias")) for name in LAYERS]

        packed: list[Tensor] = self._derived(pack)
        return packed

    def _not_finite(self) -> list[str]:
        """What keeps a GPU's kernels, in which pairs share products, from these numbers; the GPU is waited for."""

        def look() -> list[str]:
            _check_fit("the model", dict(self.named_buffers()))
            bad = [name for name, t in self.named_buffers() if not t.isfinite().all()]
            return [f"{name} holds numbers that are not finite" for name in bad]

        reasons: list[str] = self._derived(look)
        return reasons

    def _derived(self, derive: Callable[[], Any]) -> Any:
        """What a backend derives from the buffers, anew where one has changed since."""
        buffers = [t for t in self._buffers.values() if t is not None]  # the module's own walk takes 10 µs
        if any(t.is_inference() for t in buffers):  # made in inference mode, they change without a sign
            return derive()
        versions = [derive.__qualname__, *((t._version, t.data_ptr()) for t in buffers)]
        kept, same, found = self._kept
        if same != versions or any(t is not k for t, k in zip(buffers, kept, strict=True)):
            found = derive()
            self._kept = buffers, versions, found
        return found

    def _plain(self, X: tuple[Tensor, Tensor] | PairBatch, masks: Pair | None, lengths: Pair | None) -> Tensor:
        ids_a, ids_b, given = padded_pair(X, masks, lengths, self.padding_idx, self.table.shape[0])
        rows_a, rows_b = self.table[ids_a], self.table[ids_b]
        mask_a = as_mask("a", rows_a, given["mask_a"], given["lengths_a"])
        mask_b = as_mask("b", rows_b, given["mask_b"], given["lengths_b"])
        f_a, own_a, other_a = plain.keep(rows_a, mask_a).chunk(3, -1)
        f_b, own_b, other_b = plain.keep(rows_b, mask_b).chunk(3, -1)
        p, q = plain.weights(nn.Identity(), f_a, f_b, mask_a, mask_b)
        sums = [
            plain.keep(self._linear("compare", torch.relu(hidden)), mask).sum(1, dtype=torch.float32)
            for hidden, mask in ((own_a + p @ other_b, mask_a), (own_b + q.mT @ other_a, mask_b))
        ]
        return self._classified(torch.cat(sums, -1))

    def _classified(self, sums: Tensor) -> Tensor:
        """The scores of the sums V_a and V_b side by side."""
        hidden = self._linear("first", sums.to(self.table.dtype))
        output = F.linear(self._linear("second", hidden), self.output_weight)
        return output.float() + self.output_bias.float()

    def _linear(self, name: str, x: Tensor) -> Tensor:
        weight, bias = getattr(self, f"{name}_weight"), getattr(self, f"{name}_bias")
        return torch.relu(F.linear(x, weight, bias.to(weight.dtype)))

    def save(self, path: str | Path) -> None:
        """Write table, weights and padding_idx to a safetensors file; biases as float32.

        Raises:
            ValueError: the model was cast to what it can't be frozen in. OSError: the file can't be written.
        """
        if self.table.dtype not in DTYPES:
            raise ValueError(
                f"a frozen model can be saved in torch.float32 or torch.bfloat16, not in {self.table.dtype}"
            )
        state = {name: (t.float() if name.endswith("_bias") else t).contiguous() for name, t in self.named_buffers()}
        metadata = {"format": FORMAT, "padding_idx": "" if self.padding_idx is None else str(self.padding_idx)}
        save_tensors(state, Path(path), metadata)

    @classmethod
    def load(
        cls, path: str | Path, *, device: torch.device | str = "cpu", backend: str | None = None
    ) -> FrozenDecomposableAttention:
        """The model that `save` wrote.

        Raises:
            OSError: the file can't be read. ValueError: it is not one of `save`'s.
        """
        Path(path).open("rb").close()  # of a folder safetensors says "No such device"
        try:
            with safetensors.safe_open(path, "pt", device=str(device)) as file:
                metadata = file.metadata() or {}
                state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except safetensors.SafetensorError as error:
            raise ValueError(f"{path} is not a whole safetensors file: {error}") from error
        if metadata.get("format") != FORMAT:
            raise ValueError(
                f"{path} holds no frozen model ({FORMAT}), but {metadata.get('format') or 'other tensors'}"
            )
        if "table" in state and (dtype := state["table"].dtype) not in DTYPES:
            raise ValueError(f"{path}: table must be {' or '.join(map(str, DTYPES))}, not {dtype}")
        _check_fit(str(path), state)
        padding_idx = metadata.get("padding_idx") or None
        if padding_idx is not None and not (padding_idx.isdecimal() and int(padding_idx) < len(state["table"])):
            raise ValueError(f"{path}: padding_idx must be a row of the table, not {padding_idx!r}")
        for name, t in state.items():
            if name.endswith("_bias") and t.dtype != torch.float32:
                raise ValueError(f"{path}: {name} must be {torch.float32}, not {t.dtype}")
        made = cls.__new__(cls)
        nn.Module.__init__(made)
        made._set_up(state, None if padding_idx is None else int(padding_idx), backend)
        return made

    # What is derived is this machine's: moving or casting the buffers leaves it behind, and so does pickling.

    def _apply(self, fn: Any, recurse: bool = True) -> FrozenDecomposableAttention:
        self._kept = _NOTHING
        super()._apply(fn, recurse)
        return self

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_kept": _NOTHING}


def _most_tokens(X: tuple[Tensor, Tensor] | PairBatch) -> int | None:
    """How many a pair may have, both sides together; None of what are no plain padded ids."""
    if isinstance(X, PairBatch):
        return X.most_tokens
    fits = isinstance(X, (tuple, list)) and len(X) == 2 and unobserved(tuple(X)) and all(t.ndim == 2 for t in X)
    return X[0].shape[1] + X[1].shape[1] if fits else None


def _check_device(name: str, t: Tensor, table: Tensor) -> None:
    if t.device != table.device:
        raise ValueError(f"{name} must be on {table.device}, like the model, not on {t.device}")


def check_extents(status: int, ids_a: Tensor, ids_b: Tensor) -> None:
    """Raise what the kernel has found in lengths or offsets."""
    if status == native.BAD_EXTENTS:
        raise ValueError(
            "lengths must lie between 0 and the width of the ids; offsets must start at 0, never fall and end at "
            f"the number of ids: {tuple(ids_a.shape)} and {tuple(ids_b.shape)}"
        )
    assert status == native.FINE


def _extent(side: str, ids: Tensor, given: Mapping[str, Tensor | None]) -> Tensor | None:
    """The mask or the lengths of a side, checked; None where all are tokens."""
    mask, lengths = given[f"mask_{side}"], given[f"lengths_{side}"]
    check_mask(side, ids, mask, lengths)
    extent = lengths if mask is None else mask
    return None if extent is None else extent.contiguous()


def _later_layers(model: DecomposableAttention) -> list[nn.Linear]:
    """What a pair passes after the table, as LAYERS names it."""
    return [model.compare.g.linears()[1], *model.aggregate.h.linears(), model.aggregate.linear]


def _vocabulary_table(model: DecomposableAttention, dtype: torch.dtype) -> Tensor:
    """All words' rows, F, G_a and G_b side by side, computed in float32, or in float64 where the model is."""
    vectors = model.embedding.weight
    if model.projection is not None:
        vectors = F.linear(vectors, model.projection.weight)
    wide = torch.float64 if vectors.dtype == torch.float64 else torch.float32
    f = copy.deepcopy(model.attend.f).to(wide).eval()
    first = model.compare.g.linears()[0]
    (own, other), bias = first.weight.to(wide).chunk(2, dim=1), first.bias.to(wide)
    table = vectors.new_empty(vectors.shape[0], 3 * len(bias), dtype=dtype)
    for rows, out in zip(vectors.split(CHUNK), table.split(CHUNK), strict=True):
        x = rows.to(wide)
        for part, found in zip(out.chunk(3, dim=1), (f(x), F.linear(x, own, bias), F.linear(x, other)), strict=True):
            part.copy_(found)
    return table


def _check_fit(whose: str, state: Mapping[str, Tensor]) -> None:
    """That the tensors are a frozen model's, and fit one another: the kernel relies on it, and reads no other dtype."""
    expected = {"table", *(f"{name}_{kind}" for name in LAYERS for kind in ("weight", "bias"))}
    if state.keys() != expected:
        raise ValueError(f"{whose} must hold {', '.join(sorted(expected))}; found {', '.join(sorted(state))}")
    h, classes = state["table"].shape[-1] // 3, state["output_bias"].numel()
    shapes: dict[str, tuple[int, ...]] = {"table": (len(state["table"]), 3 * h)}
    for name, out, width in (("compare", h, h), ("first", h, 2 * h), ("second", h, h), ("output", classes, h)):
        shapes |= {f"{name}_weight": (out, width), f"{name}_bias": (out,)}
    dtype = state["table"].dtype
    for name, shape in shapes.items():
        t = state[name]
        if tuple(t.shape) != shape:
            raise ValueError(f"{whose}: {name} must be {shape}, not {tuple(t.shape)}")
        if name.endswith("_weight") and t.dtype != dtype:
            raise ValueError(f"{whose}: {name} must be {dtype}, like table, not {t.dtype}")
