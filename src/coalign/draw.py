"""Soft alignments as pictures: in the terminal, and as a file."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

from rich.cells import cell_len, set_cell_size
from rich.console import Console
from rich.table import Table
from rich.text import Text
from torch import Tensor

from .model.atomic import check_writable, replacing


class Alignment(Protocol):
    """m premise words, n hypothesis words, and both ways' weights, (m, n): rows of p and columns of q sum to 1."""

    @property
    def premise(self) -> list[str]: ...
    @property
    def hypothesis(self) -> list[str]: ...
    @property
    def p(self) -> Tensor: ...
    @property
    def q(self) -> Tensor: ...


# places in a line, of which wide characters take two: a percentage with space around it, and what is shown of a word
_CELL, _LONGEST = 5, 14
_TITLES = (
    "each premise word (row) over the hypothesis: rows sum to 100",
    "each hypothesis word (column) over the premise: columns sum to 100",
)


def print_alignment(alignment: Alignment, console: Console) -> None:
    """Both directions as tables of percentages, the darker the more; in several parts where the console is narrow."""
    premise, hypothesis = ([_shortened(w) for w in words] for words in (alignment.premise, alignment.hypothesis))
    parts = [*_parts(hypothesis, console.width - max(map(cell_len, premise)) - 1)]
    for title, weights in zip(_TITLES, (alignment.p, alignment.q), strict=True):
        console.print(f"\n[bold]{title}[/]", highlight=False)
        for part in parts:
            console.print(_table(premise, hypothesis[part], weights[:, part]))


def _shortened(word: str) -> str:
    return word if cell_len(word) <= _LONGEST else set_cell_size(word, _LONGEST - 1).rstrip() + "…"


def _parts(words: list[str], width: int) -> Iterator[slice]:
    """Runs of words whose columns fit side by side."""
    start, taken = 0, 0
    for place, word in enumerate(words):
        column = max(_CELL, cell_len(word) + 2)
        if taken + column > width and place > start:
            yield slice(start, place)
            start, taken = place, 0
        taken += column
    yield slice(start, len(words))


def _table(premise: list[str], hypothesis: list[str], weights: Tensor) -> Table:
    table = Table(box=None, padding=(0, 0), pad_edge=False)
    table.add_column("", justify="right", no_wrap=True)
    for word in hypothesis:
        table.add_column(Text(f" {word} "), justify="center", no_wrap=True)
    for word, row in zip(premise, weights.tolist(), strict=True):
        table.add_row(Text(f"{word} "), *(_cell(weight) for weight in row))
    return table


def _cell(weight: float) -> Text:
    """A percentage on a background from the terminal's own to deep blue; nothing where it rounds to 0."""
    percent = round(100 * weight)
    shade = [round(255 + (to - 255) * min(1.0, weight) ** 0.7) for to in (8, 69, 148)]
    colour = "white" if weight > 0.4 else "black"
    return (
        Text(f"{percent:^5}", style=f"{colour} on rgb({shade[0]},{shade[1]},{shade[2]})")
        if percent
        else Text("  ·  ", style="dim")
    )


def plot_alignment(alignment: Alignment, path: Path) -> None:
    """Write both directions as heat maps; the ending names the format (png, svg, pdf).

    Raises:
        ImportError: matplotlib is not installed.
        ValueError: matplotlib does not know the ending.
    """
    m, n = len(alignment.premise), len(alignment.hypothesis)
    figure = new_figure(3 + 1.1 * n, 1.6 + 0.38 * m)
    plot_weights(figure, figure.subplots(1, 2, sharey=True), alignment)
    save(figure, path)


def drawable(text: str) -> str:
    """The text with a question mark for what is no character: bytes that were not UTF-8, halves of surrogate pairs."""
    return text.encode("utf-8", "replace").decode()


def new_figure(width: float, height: float) -> Any:
    """An empty matplotlib figure of so many inches. Raises ImportError where there is no matplotlib."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise ImportError("a plot needs matplotlib: pip install 'coalign[plot]'") from None
    return Figure(figsize=(width, height), layout="constrained")


def plot_weights(figure: Any, places: Any, alignment: Alignment) -> None:
    """Both directions as heat maps in two places of a figure."""
    m, n = len(alignment.premise), len(alignment.hypothesis)
    titles = (
        "β: each premise word's weights\n(rows sum to 1)",
        "α: each hypothesis word's weights\n(columns sum to 1)",
    )
    for axes, title, weights in zip(places, titles, (alignment.p, alignment.q), strict=True):
        image = axes.imshow(weights.numpy(), cmap="Blues", vmin=0, vmax=1, aspect="auto")
        axes.set_title(title, fontsize=10)
        axes.set_xticks(range(n), map(drawable, alignment.hypothesis), rotation=45, ha="right", parse_math=False)
        axes.set_yticks(range(m), map(drawable, alignment.premise), parse_math=False)
        axes.set_xlabel("hypothesis")
    places[0].set_ylabel("premise")
    figure.colorbar(image, ax=list(places), label="weight", shrink=0.9)


def check_picture(path: Path) -> None:
    """Raise what writing a picture would, before there is one.

    Raises:
        ImportError: matplotlib is not installed.
        ValueError: the name's ending is no format's that matplotlib writes; without one it would write another file.
        OSError: the file can't be written.
    """
    if not path.suffix:
        raise ValueError(f"{path} has no ending that names a format; try {path.name}.png")
    if path.suffix[1:].lower() not in new_figure(1, 1).canvas.get_supported_filetypes():
        raise ValueError(f"{path}: {path.suffix} is no format of pictures; try .png, .svg or .pdf")
    check_writable(path)


def save(figure: Any, path: Path) -> None:
    """Write a figure, at 150 dots an inch or, where it is large, no more than 8000 dots wide or high.

    Raises what `check_picture` does.
    """
    check_picture(path)
    with replacing(path) as unfinished:
        figure.savefig(unfinished, format=path.suffix[1:], dpi=min(150.0, 8000 / max(figure.get_size_inches())))
