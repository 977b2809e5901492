"""The progress bar of the commands that go through pairs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from .terminal import complaints


@contextmanager
def pairs_bar(disable: bool = False) -> Iterator[tuple[Progress, TaskID]]:
    """A bar of pairs with rate, time left and, in the field `told`, what there is to tell."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[told]}"),
        _Rate("pairs/s"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=complaints, transient=True, disable=disable) as progress:
        yield progress, progress.add_task("pairs", total=None, told="")


class _Rate(TextColumn):
    """Pairs a second."""

    def render(self, task: Any) -> Any:
        self.text_format = f"{task.speed or 0:,.0f} pairs/s"
        return super().render(task)
