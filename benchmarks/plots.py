"""Pictures of stored results: speed-ups, time and memory against length, the roofline; light and dark."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from .report import compared

THEMES = {"light": ("white", "#222222", "#d0d0d0"), "dark": ("#111418", "#e6e6e6", "#3a3f45")}
# told apart by those who see fewer colours too, and on both grounds
COLOURS = ("#e69f00", "#56b4e9", "#009e73", "#cc79a7", "#d55e00", "#0072b2", "#999999")


def draw(lines: list[dict[str, Any]], folder: Path) -> list[Path]:
    """Write every picture for which there are results; what was written.

    Raises:
        ImportError: matplotlib is not installed.
    """
    try:
        import matplotlib
    except ImportError:
        raise ImportError('matplotlib is not installed: pip install "coalign[bench]"') from None
    matplotlib.use("Agg")
    lines = [line for line in lines if "absent" not in line]
    swept = [line for line in lines if line["case"].startswith("length ")]
    others = [line for line in lines if line not in swept]
    pictures: list[tuple[str, Callable[[Any], None], bool]] = [
        ("speedup", lambda axes: _speedups(axes, others), bool(compared(others))),
        ("roofline", lambda axes: _roofline(axes, others), bool(others)),
        ("time", lambda axes: _against_length(axes, swept, "p50", 1e3, "milliseconds a call"), bool(swept)),
        ("memory", lambda axes: _against_length(axes, swept, "memory", 2**-20, "MiB at the peak"), bool(swept)),
    ]
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for name, paint, wanted in pictures:
        for theme in THEMES if wanted else ():
            path = folder / f"{name}-{theme}.png"
            _save(path, theme, lines[-1]["device"], paint)
            written.append(path)
    return written


def _save(path: Path, theme: str, device: str, paint: Callable[[Any], None]) -> None:
    import matplotlib.pyplot as plt

    ground, ink, grid = THEMES[theme]
    names = ("axes.edgecolor", "axes.labelcolor", "text.color", "xtick.color", "ytick.color")
    style = dict.fromkeys(names, ink) | dict.fromkeys(("figure.facecolor", "axes.facecolor"), ground)
    style |= {"grid.color": grid, "legend.facecolor": ground, "legend.edgecolor": grid, "axes.axisbelow": True}
    with plt.rc_context(style):
        figure, axes = plt.subplots(figsize=(9, 5), layout="constrained")
        paint(axes)
        axes.set_title(f"{axes.get_title()}\n{device}", fontsize=10)
        axes.grid(True, axis="both" if axes.get_xscale() == "log" else "x")
        figure.savefig(path, dpi=120)
        plt.close(figure)


def _speedups(axes: Any, lines: Iterable[dict[str, Any]]) -> None:
    found = [c for c in compared(lines) if not c.own["hot"]]
    cases = list(dict.fromkeys((c.own["case"], c.own["graph"]) for c in found))
    for place, direction in enumerate(("forward", "forward + backward")):
        at = [cases.index((c.own["case"], c.own["graph"])) for c in found if c.own["direction"] == direction]
        ratios = [c.ratio for c in found if c.own["direction"] == direction]
        bars = axes.barh([y + 0.4 * place for y in at], ratios, height=0.38, label=direction, color=COLOURS[place])
        axes.bar_label(bars, fmt="%.1f", padding=3, fontsize=8)
    axes.set_yticks([y + 0.2 for y in range(len(cases))], [name + ", graph" * graph for name, graph in cases])
    axes.invert_yaxis()
    axes.axvline(1, color=COLOURS[-1], linestyle="--")
    axes.set_xlabel("times as fast as the fastest peer")
    axes.set_title("coalign against the fastest of its peers")
    axes.legend()


def _roofline(axes: Any, lines: Iterable[dict[str, Any]]) -> None:
    latest = {
        (line["case"], line["direction"], line["graph"]): line
        for line in lines
        if line["contender"] == "coalign" and not line["hot"]
    }
    kinds = sorted({line["size"].rsplit(", ", 1)[1] for line in latest.values()})
    for place, dtype in enumerate(kinds):
        of = [line for line in latest.values() if line["size"].endswith(dtype)]
        bandwidth, rate = of[-1]["bandwidth"], of[-1]["rate"]
        low, high = 0.25, max(line["operations"] / line["bytes"] for line in of) * 2
        knee = rate / bandwidth
        axes.plot(
            [low, knee, max(high, knee)],
            [low * bandwidth / 1e9, rate / 1e9, rate / 1e9],
            color=COLOURS[place],
            label=f"measured ceiling, {dtype}",
        )
        for direction, mark in (("forward", "o"), ("forward + backward", "s")):
            chosen = [line for line in of if line["direction"] == direction]
            axes.scatter(
                [line["operations"] / line["bytes"] for line in chosen],
                [line["operations"] / line["p50"] / 1e9 for line in chosen],
                color=COLOURS[place],
                marker=mark,
                label=f"{direction}, {dtype}",
            )
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel("operations a byte that must be moved")
    axes.set_ylabel("10⁹ operations a second")
    axes.set_title("Roofline: what is reached of what the device was measured to do")
    axes.legend(fontsize=8)


def _against_length(axes: Any, lines: list[dict[str, Any]], what: str, unit: float, label: str) -> None:
    contenders = list(dict.fromkeys(line["contender"] for line in lines))
    for place, name in enumerate(contenders):
        for direction, style in (("forward", "-"), ("forward + backward", "--")):
            points = {
                int(line["case"].split()[1]): line[what] * unit
                for line in lines
                if line["contender"] == name and line["direction"] == direction and line[what]
            }
            if points:
                axes.plot(
                    sorted(points),
                    [points[n] for n in sorted(points)],
                    style,
                    marker="o",
                    color=COLOURS[place],
                    label=f"{name}, {direction}",
                )
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xlabel("tokens on either side")
    axes.set_ylabel(label)
    axes.set_title(lines[-1]["size"].split(", ", 1)[1] + ", 4 pairs")
    axes.legend(fontsize=8)
