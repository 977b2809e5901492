"""The benchmark of the drop-in layers: both contenders compute the same, wrong ones are refused, tables of records."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import layers, measure, report, results

ROOT = Path(__file__).parents[1]
STORED = sorted(results.FOLDER.glob("*/layers.jsonl"))
SMALL = [case for case in layers.CASES if case.name in ("ESIM", "Graph Matching Networks", "AllenNLP")]


@pytest.mark.parametrize("case", SMALL, ids=lambda case: case.name)
@pytest.mark.parametrize("direction", measure.directions())
def test_layers_are_timed(case, direction, monkeypatch):
    monkeypatch.setattr(measure, "BURST", 0.001)
    rounds = []
    lines = layers.run(case, direction, 2, 1, lambda: rounds.append(1))
    assert len(rounds) == 2
    assert [line["contender"] for line in lines] == ["coalign", layers.ORIGINAL]
    assert all(line["p50"] > 0 and len(line["samples"]) == 2 for line in lines)
    ((mine, others, ratio),) = layers.speedups(lines)[case.name, 1, lines[0]["device"]].values()
    assert ratio == others / mine
    ((name, size, *_),) = layers._rows(lines)
    assert (name, size) == (case.name, case.size)


def made(contender, direction, seconds, **changes):
    about = {"case": "ESIM", "size": "64 pairs", "contender": contender, "direction": direction, "p50": seconds}
    return {**about, "threads": 2, "device": "a processor", **changes}


def test_layers_with_other_threads_have_rows_of_their_own():
    both = [made(name, d, s) for d in measure.directions() for name, s in (("coalign", 1e-3), (layers.ORIGINAL, 3e-3))]
    alone = [made("coalign", "forward", 2e-3, threads=1), made(layers.ORIGINAL, "forward", 8e-3, threads=1)]
    rows = layers._rows([*both, *alone])
    assert [(row[0], row[4], row[7]) for row in rows] == [
        ("ESIM, 2 threads", "3.0", "3.0"),
        ("ESIM, 1 thread", "4.0", ""),
    ]
    assert layers.column([*both, *alone], "ESIM") == "3.0 / 3.0"
    assert [row[0] for row in layers._rows(both)] == ["ESIM"]


@pytest.mark.parametrize("case", layers.CASES, ids=lambda case: case.name)
def test_a_wrong_layer_is_refused(case, monkeypatch):
    right = case.make

    def wrong(draw):
        layer, formula, inputs, kept = right(draw)
        return layer, lambda *x: tuple(t + 0.1 for t in formula(*x)), inputs, kept

    with pytest.raises(measure.Wrong, match=case.name):
        layers.run(layers.LayerCase(case.name, case.size, wrong), "forward", 1, 1)


@pytest.mark.parametrize("path", STORED, ids=lambda path: path.parent.name)
def test_the_page_shows_the_stored_results(path):
    lines = results.read(path)
    assert f"{report.heading(lines)}:\n\n{layers.markdown(lines)}" in (ROOT / "docs/layers.md").read_text()


@pytest.mark.skipif(not STORED, reason="no results are stored")
def test_the_readme_shows_one_devices_results():
    """Forward and both passes in one column, all of one device."""
    rows = [line for line in (ROOT / "README.md").read_text().splitlines() if line.startswith("| ")]

    def is_shown(lines, case):
        project = case.name.split(",")[0]
        return layers.column(lines, case.name) in next(row for row in rows if row.startswith(f"| {project}"))

    stored = [results.read(path) for path in STORED]
    assert any(all(is_shown(lines, case) for case in layers.CASES) for lines in stored)
