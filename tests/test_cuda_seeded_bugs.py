"""The simulator finds the bugs it is there for: each is put into a copy of the kernels, and must be noticed.

A bug is noticed when the simulator reports an error, or when under some order of the threads a number differs from
what the kernels as they are give.
"""

from __future__ import annotations

import ctypes
import shutil
from itertools import accumulate
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from coalign.kernels.native import build
from cuda_sim import simulated

BLOCK, TILE, STREAM, BACKWARD = "block.cuh", "tile.cuh", "stream.cuh", "stream_backward.cuh"
FROZEN = "frozen.cuh"
NAMES = ("f_a", "f_b", "a", "b", "dbeta", "dalpha", "beta", "alpha", "lse_a", "lse_b")
NAMES += ("delta_a", "delta_b", "df_a", "df_b", "da", "db")


class Pair(ctypes.Structure):
    """kernels.cpp's."""

    _fields_ = [(name, ctypes.c_int) for name in "mnhd"] + [(name, ctypes.c_void_p) for name in NAMES]


class Sentences(ctypes.Structure):
    """kernels.cpp's."""

    _fields_ = [(name, ctypes.c_int) for name in ("pairs", "words", "h")]
    _fields_ += [(name, ctypes.c_void_p) for name in ("ids_a", "ids_b", "offsets_a", "offsets_b")]
    _fields_ += [(name, ctypes.c_void_p) for name in ("table", "weight", "bias", "sums")]


class Bug(NamedTuple):
    """One change of the kernels' source, which holds `right` once."""

    name: str
    file: str
    right: str
    wrong: str
    route: str = "tile"


SYNC = "__syncthreads();\n"
BUGS = [
    # barriers
    Bug("no barrier before a stage is used", BLOCK, f"<1>();\n    {SYNC}", "<1>();\n"),
    Bug("no barrier after a stage was used", BLOCK, f"use(c, c % 2);\n    {SYNC}", "use(c, c % 2);\n"),
    Bug("no barrier after marking tokens", TILE, f"mark_tokens<T>(token_b, b.extent, pair, 0);\n  {SYNC}\n  float",
        "mark_tokens<T>(token_b, b.extent, pair, 0);\n  float"),
    Bug("no barrier after the scores", TILE, f"= e;\n  }});\n  {SYNC}", "= e;\n  });\n"),
    Bug("no barrier after the peaks", TILE, f"= found.lse;\n  }}\n  {SYNC}", "= found.lse;\n  }\n"),
    Bug("no barrier after marking the other side", STREAM, f"pair, j0);\n    {SYNC}", "pair, j0);\n", "stream"),
    Bug("no barrier after reading the other side", BACKWARD, f"pair, j0);\n    {SYNC}", "pair, j0);\n", "stream"),
    Bug("no barrier after the segments", FROZEN, f"  {SYNC}  if (thread < T) {{", "  if (thread < T) {", "frozen"),
    Bug("no barrier after reading words", FROZEN, f"kNoSegment;\n  }}\n  {SYNC}", "kNoSegment;\n  }\n", "frozen"),
    Bug("no barrier after a chunk of outputs", FROZEN, f"  }});\n        {SYNC}", "  });\n", "frozen"),
    Bug("no barrier after a group's last sums", BLOCK, f"use(c, c % 2);\n    {SYNC}", "use(c, c % 2);\n", "frozen"),
    Bug("a barrier that not all threads reach", TILE, "peak[thread] = found.peak;",
        "peak[thread] = found.peak; if (of_row) __syncthreads();"),
    # asynchronous copies
    Bug("waits for too few groups", BLOCK, "wait_for_copies<1>();", "wait_for_copies<2>();"),
    Bug("does not wait at all", BLOCK, "wait_for_copies<1>();", ""),
    Bug("forgets to close a group", BLOCK, "    commit_copies();\n", ""),
    Bug("fetches into the stage in use", BLOCK, "fetch_chunk(c + 1, (c + 1) % 2)", "fetch_chunk(c + 1, 0)"),
    # warps
    Bug("lanes part before a shuffle", BLOCK, "if (!token[i]) continue;",
        "if (!token[i] || threadIdx.x % 32 == 5) continue;"),
    # shared memory
    Bug("index past the end", BLOCK, "p < T * pieces;", "p < (T + 1) * pieces;"),
    Bug("index before the start", TILE, "q[i * kPitch + j] = expf(e", "q[i * kPitch + j - 1] = expf(e"),
    Bug("more shared memory than was asked for", TILE, "shared_bytes<M, T>(2, 6);", "shared_bytes<M, T>(1, 6);"),
    Bug("no room for the last segment's end", FROZEN, "take<int>(T + 1)", "take<int>(T)", "frozen"),
    Bug("less shared memory than the hidden rows need", FROZEN, "sizeof(S)) * T * hidden", "sizeof(S)) * 16 * hidden",
        "frozen"),
    Bug("a segment counted from the wrong row", FROZEN, "room.first[segment + 1] <= thread",
        "room.first[segment + 1] < thread", "frozen"),
    Bug("copies of 8 bytes to odd places", BLOCK, "M::kColumns + 16 / static_cast<int>(sizeof(typename M::S))",
        "M::kColumns + 1"),
]  # fmt: skip


def compiled(folder: Path) -> ctypes.CDLL:
    """kernels.cpp over the kernels that the folder holds."""
    flags = ("-std=c++20", "-O1", "-fPIC", "-fvisibility=hidden", "-fno-gnu-unique")
    tools = build.Toolchain("simulated CUDA", build.compiler(), flags, machine="", headers=(folder,))
    library = ctypes.CDLL(str(build.build(("kernels.cpp",), simulated.HERE, tools)))
    library.coalign_simulate.argtypes = ctypes.c_int, ctypes.c_uint64
    library.run_pair.restype = library.run_sentences.restype = ctypes.c_char_p
    return library


def run(library: ctypes.CDLL, order: str, route: str) -> dict[str, torch.Tensor] | str:
    """What comes of a small call, or what the simulator says is wrong."""
    library.coalign_simulate(simulated.ORDERS.index(order), 1)
    return run_sentences(library) if route == "frozen" else run_pair(library, route == "stream")


def run_sentences(library: ctypes.CDLL) -> dict[str, torch.Tensor] | str:
    """A frozen model's sums. The first 16 pairs fill a tile of 32 rows, and all its segments."""
    a, b = (1,) * 16 + (7, 3, 12, 0, 20, 9), (1,) * 16 + (2, 6, 4, 3, 12, 8)
    words, h = 30, 40
    draw = torch.Generator().manual_seed(0)
    tensors = [torch.randint(words, (sum(lengths),), generator=draw) for lengths in (a, b)]
    tensors += [torch.tensor([0, *accumulate(lengths)], dtype=torch.int32) for lengths in (a, b)]
    tensors += [torch.randn(shape, generator=draw) * 0.3 for shape in ((words, 3 * h), (h, h), (h,))]
    sums = torch.full((len(a), 2 * h), torch.nan)
    sentences = Sentences(len(a), words, h, *(t.data_ptr() for t in (*tensors, sums)))
    error = library.run_sentences(ctypes.byref(sentences)).decode()
    return error or {"sums": sums}


def run_pair(library: ctypes.CDLL, stream: bool) -> dict[str, torch.Tensor] | str:
    """Outputs and gradients of a pair."""
    m, n, h, d = (70, 67, 40, 36) if stream else (30, 27, 100, 70)
    draw = torch.Generator().manual_seed(0)
    shapes = {name: (m if name in ("f_a", "a", "dbeta", "beta", "df_a", "da") else n, d) for name in NAMES}
    shapes |= {"f_a": (m, h), "df_a": (m, h), "f_b": (n, h), "df_b": (n, h)}
    shapes |= {"lse_a": (m,), "delta_a": (m,), "lse_b": (n,), "delta_b": (n,)}
    tensors = {name: torch.randn(shape, generator=draw) * 0.3 for name, shape in shapes.items()}
    for name in NAMES[6:]:
        tensors[name].fill_(torch.nan)
    pair = Pair(m, n, h, d, *(tensors[name].data_ptr() for name in NAMES))
    error = library.run_pair(ctypes.byref(pair), int(stream)).decode()
    return error or {name: tensors[name] for name in NAMES[6:] if stream or not name.startswith("delta")}


@pytest.fixture(scope="module")
def right() -> ctypes.CDLL:
    return compiled(simulated.CSRC)


@pytest.mark.parametrize("route", ["tile", "stream", "frozen"])
def test_kernels_without_bugs_pass(right, route):
    found = [run(right, order, route) for order in simulated.ORDERS]
    for result in found:
        assert not isinstance(result, str), result
        for name, t in result.items():
            assert t.isfinite().all(), name
            assert torch.equal(t, found[0][name]), name


@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: bug.name)
def test_bug_is_caught(bug, right, tmp_path, monkeypatch):
    monkeypatch.setenv("COALIGN_CACHE", str(tmp_path / "cache"))
    shutil.copytree(simulated.CSRC / "cuda", tmp_path / "cuda")
    shutil.copy(simulated.CSRC / "mix.h", tmp_path)
    source = (tmp_path / "cuda" / bug.file).read_text()
    assert source.count(bug.right) == 1
    (tmp_path / "cuda" / bug.file).write_text(source.replace(bug.right, bug.wrong))
    truth = run(right, "forward", bug.route)
    library = compiled(tmp_path)
    noticed = {}
    for order in simulated.ORDERS:
        found = run(library, order, bug.route)
        if isinstance(found, str):
            noticed[order] = found
        elif wrong := [name for name, t in found.items() if not torch.equal(t, truth[name])]:
            noticed[order] = f"wrong: {', '.join(wrong)}"
    print(bug.name, noticed)
    assert noticed
