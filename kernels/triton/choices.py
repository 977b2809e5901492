"""Tile sizes, warps and stages: one small table a kernel.

Chosen from compiled code (Triton 3.9 for sm_80, sm_90, sm_100, sm_120 and gfx942; `coalign kernels` prints the
report): the largest tiles that keep everything in registers. One warp too few is a cliff of thousands of spilled
bytes. What still spills is the stream kernels' backward pass in IEEE float32 when the widths exceed 128 (some 500
bytes) and wherever they exceed 64 on gfx942, and a 128-row tile on sm_100 (some 150). Where a GPU has timed choices
(`make gpu-tune`), tuned/<architecture>.json holds what was fastest there, and goes before these tables.
"""

from __future__ import annotations

import json
from functools import cache
from importlib import resources
from typing import Literal, NamedTuple

import torch

Arithmetic = Literal["half", "tf32", "ieee"]

TILE_FORWARD_MAX = 128  # longest side that one program holds, forward
TILE_BACKWARD_MAX = 64  # and backward: a 128 x 128 tile spills in every form


FROZEN_WIDTH = 256  # a frozen model's widest hidden layer: a tile's outputs stay in registers
# And the narrowest in TF32. On an H200 (Triton 3.6) scores of one of 12 were off by 19 %; of 200 they were right, and
# in the other arithmetics of 7, 20, 33 and 200. The compiled code shows no cause: narrow ones are multiplied exactly.
FROZEN_TF32_WIDTH = 64


class Choice(NamedTuple):
    """Warps and pipeline stages of a kernel, and its BLOCK_ constants."""

    num_warps: int
    num_stages: int
    blocks: dict[str, int]


trial: dict[str, list[int]] = {}  # what the tuner is trying out; goes before everything


@cache
def tuned(architecture: str) -> dict[str, list[int]]:
    """What was measured to be fastest on an architecture, by key; nothing where nobody has measured."""
    path = resources.files(__package__) / "tuned" / f"{architecture}.json"
    return json.loads(path.read_text())["choices"] if path.is_file() else {}


def key(kernel: str, backward: bool, kind: Arithmetic, size: int) -> str:
    """Of a choice: kernel is "tile", "ragged" (tiles of several sizes), "stream" or "frozen"; size the largest tile's
    rows or the stream's widest operand, rounded up."""
    return f"{kernel} {'backward' if backward else 'forward'} {kind} {size}"


def _chosen(name: str, architecture: str, default: list[int]) -> list[int]:
    return trial.get(name) or tuned(architecture).get(name) or default


def arithmetic(dtype: torch.dtype, tf32: bool) -> Arithmetic:
    """How a kernel multiplies: in 16 bits, or float32 on tensor cores (TF32), or IEEE float32."""
    if dtype in (torch.bfloat16, torch.float16):
        return "half"
    return "tf32" if tf32 else "ieee"


def frozen_tf32(tf32: bool, h: int) -> bool:
    """Whether a frozen model of this width is multiplied in TF32 where that is allowed."""
    return tf32 and h >= FROZEN_TF32_WIDTH


# largest tile -> warps
_TILE_WARPS: dict[bool, dict[Arithmetic, dict[int, int]]] = {
    False: {
        "half": {16: 1, 32: 4, 64: 4, 128: 8},
        "tf32": {16: 1, 32: 4, 64: 4, 128: 8},
        "ieee": {16: 4, 32: 4, 64: 8, 128: 8},
    },
    True: {
        "half": {16: 1, 32: 4, 64: 8},
        "tf32": {16: 1, 32: 4, 64: 8},
        "ieee": {16: 4, 32: 4, 64: 8},
    },
}


def tile(
    longest: int, ragged: bool, h: int, d: int, kind: Arithmetic, backward: bool, architecture: str = ""
) -> Choice:
    """For pairs of at most `longest` rows; ragged ones may use smaller tiles too. d is the wider value."""
    largest = max(16, _power_of_two(longest))
    several = ragged and largest > 16
    default = [_TILE_WARPS[backward][kind][largest], 2, 32, 32]
    name = key("ragged" if several else "tile", backward, kind, largest)
    warps, stages, most_h, most_d = _chosen(name, architecture, default)
    return Choice(
        num_warps=warps,
        num_stages=stages,
        blocks={
            "SMALLEST": 16 if several else largest,
            "LARGEST": largest,
            "BLOCK_H": _block(h, most_h),
            "BLOCK_D": _block(d, most_d),
        },
    )


# widest of h and d, rounded up to a power of two (the last row serves all wider)
# -> BLOCK_M, BLOCK_N, BLOCK_H and BLOCK_D at most, warps, stages
_STREAM: dict[bool, dict[Arithmetic, dict[int, tuple[int, int, int, int, int, int]]]] = {
    False: {
        "half": {64: (128, 64, 64, 64, 8, 2), 128: (128, 64, 128, 128, 8, 2), 256: (64, 32, 256, 128, 4, 2)},
        "tf32": {64: (128, 64, 64, 64, 8, 2), 128: (64, 32, 128, 128, 8, 2), 256: (32, 32, 256, 128, 8, 2)},
        "ieee": {64: (64, 32, 64, 64, 8, 2), 128: (64, 32, 128, 128, 8, 2), 256: (32, 32, 256, 128, 8, 2)},
    },
    True: {
        "half": {64: (64, 32, 64, 64, 8, 2), 128: (32, 32, 128, 128, 8, 2), 256: (32, 32, 256, 128, 8, 2)},
        "tf32": {64: (32, 32, 64, 64, 8, 2), 128: (32, 32, 128, 128, 8, 1), 256: (32, 32, 128, 64, 8, 1)},
        "ieee": {64: (32, 32, 64, 64, 8, 2), 128: (32, 32, 128, 64, 8, 1), 256: (32, 32, 128, 64, 8, 1)},
    },
}


def stream(h: int, d: int, kind: Arithmetic, shared: int, backward: bool, architecture: str = "") -> Choice:
    """For longer sequences; d is the wider value, shared the bytes of shared memory a program may use.

    Half the pipeline's stages take about half the memory: that is what smaller GPUs get.
    """
    widest = min(256, max(64, _power_of_two(max(h, d))))
    *default, stages = _STREAM[backward][kind][widest]
    default.append(stages if shared >= 160 * 1024 else 1)
    block_m, block_n, most_h, most_d, warps, stages = _chosen(
        key("stream", backward, kind, widest), architecture, default
    )
    return Choice(
        num_warps=warps,
        num_stages=stages,
        blocks={"BLOCK_M": block_m, "BLOCK_N": block_n, "BLOCK_H": _block(h, most_h), "BLOCK_D": _block(d, most_d)},
    )


def delta(d: int) -> Choice:
    """For the row sums before the stream kernels' backward pass."""
    return Choice(num_warps=4, num_stages=1, blocks={"BLOCK_R": 32, "BLOCK_D": _block(d, 128)})


# tile, in tokens of both sides -> warps, BLOCK_H at most, kilobytes of shared memory at the widest hidden layer
_FROZEN: dict[Arithmetic, dict[int, tuple[int, int, int]]] = {
    "half": {64: (8, 32, 54), 128: (8, 16, 72)},
    "tf32": {64: (8, 16, 72), 128: (8, 16, 144)},
    "ieee": {64: (8, 16, 72), 128: (16, 16, 144)},
}


def frozen_tiles(kind: Arithmetic, shared: int) -> list[int]:
    """The tiles of a frozen model that fit a GPU, smallest first; the largest bounds a pair's tokens."""
    return [rows for rows, (_, _, kilobytes) in _FROZEN[kind].items() if kilobytes * 1024 <= shared]


def frozen(rows: int, h: int, kind: Arithmetic, architecture: str = "") -> Choice:
    """For a frozen model's tiles of so many tokens, h wide."""
    *default, _ = _FROZEN[kind][rows]
    warps, block = _chosen(key("frozen", False, kind, rows), architecture, default)
    blocks = {"TILE": rows, "GROUP": 8, "BLOCK_H": _block(h, block), "WIDTH": max(16, _power_of_two(h))}
    return Choice(num_warps=warps, num_stages=2, blocks=blocks)


def frozen_owned(pairs: int) -> int:
    """How many pairs a program takes: several, once there are programs enough for a large GPU's multiprocessors."""
    return min(16, max(1, pairs // 256))


def _power_of_two(n: int) -> int:
    return 1 << max(0, n - 1).bit_length()


def _block(width: int, most: int) -> int:
    """A chunk of so wide a matrix: tl.dot needs 16 columns or more."""
    return min(most, max(16, _power_of_two(width)))
