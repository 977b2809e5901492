"""An explanation as one HTML page that needs nothing else: no scripts, no fonts, no network."""

from __future__ import annotations

from html import escape

from torch import Tensor

from .draw import drawable
from .draw_explanation import largest, remarks, sides
from .model.nli import Explanation

# Colours keep 4.5 : 1 between text and ground in both schemes, the strongest grounds included.
_STYLE = """
:root { color-scheme: light dark; --ground: #fff; --text: #1a1a1a; --quiet: #595959; --line: #c8c8c8;
  --for: #7db8e8; --against: #f2ab6d; }
@media (prefers-color-scheme: dark) { :root { --ground: #161616; --text: #f2f2f2; --quiet: #b0b0b0; --line: #4a4a4a;
  --for: #1d5c92; --against: #8a4a10; } }
body { background: var(--ground); color: var(--text); font: 1rem/1.5 system-ui, sans-serif; margin: 2rem auto;
  max-width: 70rem; padding: 0 1rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; margin: .5rem 0 1.5rem; }
caption { text-align: left; font-weight: 600; padding: .3rem 0; }
th, td { border: 1px solid var(--line); padding: .2rem .5rem; text-align: right; font-weight: 400;
  font-variant-numeric: tabular-nums; }
td { background: color-mix(in srgb, var(--shade, var(--for)) var(--part, 0%), var(--ground)); }
.sentence span { background: color-mix(in srgb, var(--shade) var(--part), var(--ground)); border-radius: .2rem;
  display: inline-block; margin: .1rem; padding: 0 .3rem; text-align: center; }
.sentence small { display: block; font-size: .75rem; }
.quiet { color: var(--quiet); }
"""


def page(found: Explanation) -> str:
    """The page: the answer, the sentences with each word's contribution, and both alignments as tables."""
    title = escape(f"{found.label}: why")
    parts = [
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n<title>{title}</title>',
        f'<meta name="viewport" content="width=device-width">\n<style>{_STYLE}</style>\n</head>\n<body>\n<main>',
        f"<h1>{escape(found.label)}</h1>",
        _table("probabilities", ["class", "probability"], [[n, f"{x:.4f}"] for n, x in found.probabilities.items()]),
        "<h2>Each word's contribution</h2>",
        f'<p class="quiet">By how many nats the log-odds of {escape(found.label)} fall when the word is left out of '
        "its sentence's sum: positive speaks for the answer, negative against it. They do not add up.</p>",
        *(_sentence(name, words, values, largest(found)) for name, words, values in sides(found)),
        *(f'<p class="quiet">{escape(remark)}</p>' for remark in remarks(found)),
        "<h2>Alignment</h2>",
        _weights(found, found.p, "Each premise word (row) over the hypothesis, in percent: rows sum to 100"),
        _weights(found, found.q, "Each hypothesis word (column) over the premise, in percent: columns sum to 100"),
        "</main>\n</body>\n</html>\n",
    ]
    return drawable("\n".join(parts))


def _sentence(name: str, words: list[str], values: Tensor, most: float) -> str:
    spans = []
    for word, value in zip(words, values.tolist(), strict=True):
        shade = f"--shade: var(--{'for' if value > 0 else 'against'}); --part: {100 * abs(value) / most:.0f}%"
        spans.append(f'<span style="{shade}">{escape(word)}<small>{value:+.3f}</small></span>')
    return f'<h3>{name}</h3>\n<p class="sentence">{" ".join(spans)}</p>'


def _weights(found: Explanation, weights: Tensor, caption: str) -> str:
    rows = [[word, *row] for word, row in zip(found.premise, weights.tolist(), strict=True)]
    return _table(caption, ["", *found.hypothesis], rows)


def _table(caption: str, header: list[str], rows: list[list[str | float]]) -> str:
    """A table with a caption; each row begins with its name. Numbers are shares, shaded and in percent."""
    head = "".join(f'<th scope="col">{escape(name)}</th>' if name else "<td></td>" for name in header)
    body = []
    for name, *cells in rows:
        shown = "".join(
            f"<td>{escape(cell)}</td>" if isinstance(cell, str) else f'<td style="--part: {p}%">{p}</td>'
            for cell, p in ((cell, 0 if isinstance(cell, str) else round(100 * cell)) for cell in cells)
        )
        body.append(f'<tr><th scope="row">{escape(str(name))}</th>{shown}</tr>')
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{escape(caption)}"><table>\n'
        f"<caption>{escape(caption)}</caption>\n<thead><tr>{head}</tr></thead>\n<tbody>\n"
        + "\n".join(body)
        + "\n</tbody>\n</table></div>"
    )
