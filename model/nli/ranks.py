"""Several processes that train one model, each on its share of every batch, as `torchrun` starts them."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from itertools import islice
from typing import TypeVar

import torch
from torch import Tensor, distributed, nn

T = TypeVar("T")


class OtherRankFailed(RuntimeError):
    """This process can't go on, because another one failed, which says why."""


@dataclass(frozen=True)
class Ranks:
    """This process among `world_size` others that do the same, by the default process group of torch.distributed.

    ALONE is a process on its own, for which nothing is sent anywhere.
    """

    rank: int = 0
    world_size: int = 1

    @property
    def first(self) -> bool:
        """Whether this is the process that writes files and speaks to the user."""
        return self.rank == 0

    def share(self, rows: Tensor) -> Tensor:
        """This rank's part of a batch: every world_size-th row. Parts differ by one row at most, and may be empty."""
        return rows[self.rank :: self.world_size]

    def every(self, batches: Iterable[T]) -> Iterator[T]:
        """Every world_size-th batch, each of which is one rank's."""
        return islice(batches, self.rank, None, self.world_size)

    def total(self, numbers: Tensor) -> Tensor:
        """numbers, in place, summed over all ranks. Every rank has to call this, and gets the same bits."""
        if self.world_size > 1:
            distributed.all_reduce(numbers)
        return numbers

    def any(self, flag: bool) -> bool:
        """Whether the flag is set on any rank. Every rank has to call this."""
        return bool(self.total(torch.tensor(int(flag), device="cpu"))) if self.world_size > 1 else flag

    def meet(self) -> None:
        """Wait until every rank is here.

        Raises:
            OtherRankFailed: one of them is here from a block of `all_or_none` that failed.
        """
        if self.any(False):
            raise OtherRankFailed("another of the processes failed")

    @contextmanager
    def all_or_none(self) -> Iterator[None]:
        """The block, which every rank has to enter; no rank goes on behind it unless all have come to its end.

        Raises:
            OtherRankFailed: the block failed, but not on this rank.
        """
        try:
            yield
        except Exception:
            self.any(True)
            raise
        self.meet()

    @contextmanager
    def first_goes_first(self) -> Iterator[None]:
        """The block runs on rank 0, and then on all others: they find the files that it has written.

        Raises:
            OtherRankFailed: as in `all_or_none`.
        """
        if not self.first:
            self.meet()
        with self.all_or_none():
            yield
        if self.first:
            self.meet()

    def parallel(self, model: nn.Module) -> nn.Module:
        """The model for training: its parameters are rank 0's, its gradients the mean over the ranks."""
        if self.world_size == 1:
            return model
        return nn.parallel.DistributedDataParallel(model, gradient_as_bucket_view=True)


ALONE = Ranks()


def are_launched() -> bool:
    """Whether this process was started as one of several, by `torchrun` or another that sets the same variables."""
    return all(name in os.environ for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"))


def own_device(device: torch.device) -> torch.device:
    """A launched process's device: where one of the GPUs is asked for, the one with its number on this machine."""
    if device.type == "cuda" and device.index is None and are_launched():
        return torch.device("cuda", int(os.environ["LOCAL_RANK"]))
    return device


@contextmanager
def joined(device: torch.device) -> Iterator[Ranks]:
    """The ranks of a launched process, which meet at the beginning and part at the end; otherwise ALONE.

    Raises:
        RuntimeError: the others can't be reached.
    """
    if not are_launched():
        yield ALONE
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)
    # a rank that is done waits for the others' parts of a long work; one that has died is noticed without a limit
    limit = timedelta(days=7)
    distributed.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo", timeout=limit)
    try:
        yield Ranks(distributed.get_rank(), distributed.get_world_size())
    finally:
        # DistributedDataParallel is part of a cycle. Were it freed after the group's last other owner, it would wait,
        # with the interpreter's lock, for the group's threads, and these wait for the lock to free a sum's tensor.
        gc.collect()
        distributed.destroy_process_group()
