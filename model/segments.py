"""The tokens of a packed batch and their sentences: which they belong to, sums over them, places when padded."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..kernels import transforms
from ..kernels.ops import traced


def offsets_of(lengths: Tensor) -> Tensor:
    """(sentences + 1,) int32, on the lengths' device, which is not waited for."""
    return nn.functional.pad(lengths.cumsum(0), (1, 0)).int()


def sentence_of_token(offsets: Tensor, total: int) -> Tensor:
    """(total,) int64: which sentence each token belongs to. offsets: (sentences + 1,), up to total."""
    sentences = torch.arange(offsets.shape[0] - 1, device=offsets.device)
    return torch.repeat_interleave(sentences, offsets.diff(), output_size=total)


def padded_places(offsets: Tensor, total: int, longest: int) -> Tensor:
    """(total,) int64: each token's row among all rows of the sentences padded to `longest`."""
    sentence = sentence_of_token(offsets, total)
    return torch.arange(total, device=offsets.device) - offsets[sentence] + sentence * longest


def segment_sum(x: Tensor, offsets: Tensor) -> Tensor:
    """(total, width) -> (sentences, width): sums of rows offsets[s] to offsets[s + 1]; 0 where there are none.

    The same bits every time, forward and backward; half precision is summed in float32.
    """
    # a trace would hold a Function as a call of Python, an exported program what is inside it, without a gradient
    if traced() or torch.compiler.is_exporting():
        return torch.segment_reduce(x.to(_wide(x)), "sum", offsets=offsets.long(), axis=0, unsafe=True).to(x.dtype)
    if not torch.compiler.is_compiling() and (transforms.transforming() or transforms.forward_mode()):
        sentence = sentence_of_token(offsets, x.shape[0])
        return (
            x.new_zeros(offsets.shape[0] - 1, x.shape[1], dtype=_wide(x))
            .index_add(0, sentence, x.to(_wide(x)))
            .to(x.dtype)
        )
    summed: Tensor = _SegmentSum.apply(x, offsets)
    return summed


def _wide(x: Tensor) -> torch.dtype:
    return torch.float32 if x.dtype in (torch.bfloat16, torch.float16) else x.dtype


class _SegmentSum(torch.autograd.Function):
    # Forward and backward on 2 cores, 3,900 tokens of 256 premises, 200 wide, in µs (medians): index_add 162 + 154;
    # embedding_bag 186 + 213; a CSR product 303 + 210; torch.segment_reduce 1080 + 277 (its own backward: 1271);
    # padding, then sum 3978 + 841. index_add adds in the order of the rows on the CPU only: on a GPU, and where a
    # compiler makes its own loops of it, additions race, and torch.segment_reduce keeps the order.

    @staticmethod
    def forward(ctx: Any, x: Tensor, offsets: Tensor) -> Tensor:
        sentence = sentence_of_token(offsets, x.shape[0])
        ctx.save_for_backward(sentence)
        wide = x.to(_wide(x))
        if x.device.type == "cpu" and not torch.compiler.is_compiling():
            summed = wide.new_zeros(offsets.shape[0] - 1, x.shape[1]).index_add_(0, sentence, wide)
        else:
            summed = torch.segment_reduce(wide, "sum", offsets=offsets, axis=0, unsafe=True)  # a GPU need not wait
        # PyTorch 2.11's compiler loses the gradient of a Function whose result went through a `to` that does nothing
        return summed if summed.dtype == x.dtype else summed.to(x.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (sentence,) = ctx.saved_tensors
        return grads[0].index_select(0, sentence), None
