"""Compiling what a run will need before it begins, several things at once.

Where a GPU is to be had for minutes, compiling torch.compile's contenders and Triton's kernels one after another
would take most of them. What these processes compile lies in the compilers' caches when the run asks for it. Nothing
that they time is kept, and nothing that chooses by timing (max-autotune) is compiled here, beside others.
"""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Sequence
from concurrent.futures import BrokenExecutor, ProcessPoolExecutor
from typing import Any
from unittest import mock

import torch

from . import whole_model
from .cases import Case
from .contenders import COMPILED, TUNED
from .measure import compare, directions
from .model_cases import ModelCase


def operator(cases: Sequence[Case], processes: int, without: tuple[str, ...] = ()) -> None:
    """Compile the operator's contenders for a GPU."""
    items = [(case, direction) for case in cases for direction in directions()]
    only = tuple(name for name in ("coalign", *COMPILED) if name not in (TUNED, *without))
    with Processes(processes) as pool:
        pool.each(_compare, [(*item, only) for item in items])


def model(cases: Sequence[ModelCase], processes: int) -> None:
    """Compile the whole model's contenders for a GPU."""
    with Processes(processes) as pool:
        pool.each(_run_model, [(case,) for case in cases])


def _compare(case: Case, direction: Any, only: tuple[str, ...]) -> None:
    torch.set_float32_matmul_precision("high" if case.tf32 else "highest")
    compare(case, direction, device="cuda", rounds=1, sets=1, only=only)


def _run_model(case: ModelCase) -> None:
    whole_model.run(case, 1, 1, device="cuda")


class Processes:
    """So many processes to call things in, which have none of their own."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._alone = mock.patch.dict(os.environ, TORCHINDUCTOR_COMPILE_THREADS="1")

    def __enter__(self) -> Processes:
        self._alone.start()
        self._pool = self._begun()
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(cancel_futures=True)
        self._alone.stop()

    def each(self, call: Callable[..., None], items: Sequence[tuple[Any, ...]]) -> None:
        """Call with each of the items. What fails here fails again where it is needed, and is named there."""
        found = [future.exception() for future in [self._pool.submit(call, *item) for item in items]]
        if any(isinstance(error, BrokenExecutor) for error in found):  # one of them died
            self._pool.shutdown()
            self._pool = self._begun()

    def _begun(self) -> ProcessPoolExecutor:
        return ProcessPoolExecutor(self._count, multiprocessing.get_context("spawn"), torch.set_num_threads, (1,))
