"""Explanations as pictures: in the terminal, and as a file; `draw_html` has the page."""

from __future__ import annotations

from pathlib import Path
from textwrap import wrap

from rich.console import Console
from rich.table import Table
from rich.text import Text
from torch import Tensor

from .draw import drawable, new_figure, plot_weights, print_alignment, save
from .model.nli import Explanation

_BAR = 24  # characters of the longest bar
FOR, AGAINST = "#1f77b4", "#d9730d"  # told apart by those who do not see red and green, and signs say it too


def summary(found: Explanation) -> str:
    """The answer with all classes' probabilities, in a line."""
    return f"{found.label}   " + "  ".join(f"{name} {share:.3f}" for name, share in found.probabilities.items())


def cuts(found: Explanation) -> list[str]:
    """A line for each sentence that the model does not read to its end."""
    counts = (("premise", found.cut_a), ("hypothesis", found.cut_b))
    return [f"words cut from the {name}'s end, as the model's max_tokens says: {n}" for name, n in counts if n]


def remarks(found: Explanation) -> list[str]:
    """Lines that say what the model does not read, and which words it does not know, where there are any."""
    return cuts(found) + ([f"not in the vocabulary: {', '.join(found.unknown)}"] if found.unknown else [])


def sides(found: Explanation) -> list[tuple[str, list[str], Tensor]]:
    """Each sentence's name, words and contributions."""
    return [
        ("premise", found.premise, found.contributions_a),
        ("hypothesis", found.hypothesis, found.contributions_b),
    ]


def largest(found: Explanation) -> float:
    """The largest contribution without its sign, which scales all drawings; never 0."""
    return max(*(float(values.abs().max()) for _, _, values in sides(found)), 1e-6)


def print_explanation(found: Explanation, console: Console) -> None:
    """The answer, each word's contribution as a bar, and both alignments."""
    console.print(summary(found), style="bold", markup=False, highlight=False)
    for remark in remarks(found):
        console.print(remark, style="dim", markup=False, highlight=False, soft_wrap=True)
    for name, words, values in sides(found):
        table = Table(box=None, padding=(0, 1), pad_edge=False, show_header=False)
        table.add_column(justify="right")
        table.add_column(justify="right")
        table.add_column()
        for word, value in zip(words, values.tolist(), strict=True):
            bar = "█" * round(_BAR * abs(value) / largest(found))
            table.add_row(Text(word), Text(f"{value:+.3f}"), Text(bar, style=FOR if value > 0 else AGAINST))
        console.print(Text(f"\n{name}: each word for (+) or against (-) {found.label}, nats of log-odds", style="bold"))
        console.print(table)
    print_alignment(found, console)


def plot_explanation(found: Explanation, path: Path) -> None:
    """Write the alignments as heat maps and the contributions as bars; the ending names the format (png, svg, pdf).

    Raises:
        ImportError: matplotlib is not installed.
        ValueError: matplotlib does not know the ending.
    """
    m, n = len(found.premise), len(found.hypothesis)
    figure = new_figure(max(9.0, 4 + 0.9 * n), 3 + 0.38 * m + 0.3 * max(m, n))
    figure.suptitle(drawable(summary(found)), fontweight="bold", parse_math=False)
    if lines := [part for line in remarks(found) for part in wrap(line, round(12 * figure.get_figwidth()))]:
        figure.supxlabel(drawable("\n".join(lines)), fontsize=9, color="dimgray", parse_math=False)
    maps, bars = figure.subplots(2, 2, height_ratios=[2 + 0.38 * m, 1 + 0.3 * max(m, n)])
    plot_weights(figure, maps, found)
    for axes, (name, words, values) in zip(bars, sides(found), strict=True):
        numbers = values.tolist()
        axes.barh(range(len(words)), numbers, color=[FOR if number > 0 else AGAINST for number in numbers])
        axes.set_yticks(range(len(words)), map(drawable, words), parse_math=False)
        axes.invert_yaxis()
        axes.axvline(0, color="black", linewidth=0.8)
        axes.set_xlim(-1.05 * largest(found), 1.05 * largest(found))
        title = f"{name}: for (+) and against (−) {found.label}"
        axes.set_title(drawable(title), fontsize=10, parse_math=False)
        axes.set_xlabel("nats of log-odds")
    save(figure, path)
