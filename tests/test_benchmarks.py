"""The benchmarks measure what they say, refuse wrong contenders, and the README shows what they found."""

import io
import os
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import typer
from rich.console import Console
from typer.testing import CliRunner

from benchmarks import (
    cases,
    contenders,
    measure,
    plots,
    predict,
    report,
    results,
    roofline,
    significance,
    suites,
)
from benchmarks.__main__ import main

ROOT = Path(__file__).parents[1]
CASES = {
    "padded": cases.Case("padded", 3, 6, 5, h=8, d=4, lengths="snli"),
    "packed": cases.Case("packed", 3, 6, 5, h=8, d=4, lengths="snli", packed=True),
    "full": cases.Case("full", 2, 6, 5, h=8, d=4, dtype=torch.bfloat16),
}
HERE = ("coalign", "eager", "2 x SDPA")  # torch.compile would take seconds
LONG = cases.Case("long", 2, 64, 64, h=32, d=32, lengths="half")


@pytest.mark.parametrize("direction", measure.directions())
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_contenders_are_timed(case, direction):
    rounds = []
    timings = measure.compare(case, direction, rounds=2, sets=2, only=HERE, step=lambda: rounds.append(1))
    assert [t.contender for t in timings] == list(HERE)
    assert len(rounds) == 2
    for timing in timings:
        assert len(timing.samples) == 2
        assert 0 < timing.quantile(0.2) <= timing.quantile(0.5) <= timing.quantile(0.8) < 1


def test_contenders_that_need_a_gpu_are_named_absent():
    timings = measure.compare(CASES["full"], "forward", rounds=1, only=("coalign", "2 x FlexAttention"))
    assert {t.contender: t.absent for t in timings} == {"2 x FlexAttention": "measured on GPUs only", "coalign": None}


@pytest.mark.parametrize(("name", "case"), [("2 x SDPA", LONG), ("2 x SDPA, widened", replace(LONG, d=20))])
def test_pytorchs_own_attention_is_the_fused_one(name, case):
    """It silently falls back to separate operators where shapes don't suit it."""
    inputs = cases.make(case)
    align = contenders.contenders(case, inputs)[name]
    measure.check(case, name, align, inputs)
    with torch.no_grad(), torch.profiler.profile() as seen:
        align(*inputs.padded)
    assert sum("flash_attention_for_cpu" in event.key for event in seen.key_averages()) == 1


def test_peers_that_pad_to_the_longest_stand_apart():
    case = CASES["padded"]
    inputs = cases.make(case)
    align = contenders.contenders(case, inputs)["eager, to the longest"]
    measure.check(case, "eager, to the longest", align, inputs)
    longest = inputs.to_longest()
    assert [t.shape[1] for t in longest.padded[:2]] == [int(length.max()) for length in inputs.lengths]
    peers = [line("eager", 4e-3), line("eager, to the longest", 3e-3), line("2 x SDPA", 5e-3)]
    (found,) = report.ratios([line("coalign", 1e-3), *peers])
    assert (found.ratio, found.longest, found.fastest_peer) == ("4.00", "3.00", "4 ms eager")


def test_half_precision_may_be_computed_in_float32():
    case, name = CASES["full"], "torch.compile, in float32"
    inputs = cases.make(case)
    measure.check(case, name, lambda *x: contenders.in_float32(*x, None, None), inputs)
    assert contenders.absent(name, case, False, "cpu") is None
    assert contenders.absent(name, CASES["padded"], False, "cpu") is not None


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_a_wrong_contender_is_refused(case):
    inputs = cases.make(case)
    align = contenders.contenders(case, inputs)["coalign"]

    def wrong(*operands):
        beta, alpha = align(*operands)
        return beta, alpha * 1.05

    measure.check(case, "coalign", align, inputs)
    with pytest.raises(measure.Wrong, match="alpha is off by 5"):
        measure.check(case, "coalign", wrong, inputs)


def test_a_contender_that_gives_nan_is_refused():
    case = CASES["full"]
    with pytest.raises(measure.Wrong, match="nan"):
        measure.check(case, "eager", lambda f_a, f_b, a, b: (a * torch.nan, b), cases.make(case))


def test_peak_memory_sees_what_a_call_holds_for_a_moment():
    seen = measure.peak_memory("cpu", lambda: torch.ones(16 << 20))
    if seen is None:
        pytest.skip("the system does not tell a process its peak memory")
    assert 50 << 20 < seen < 90 << 20


def test_lengths_are_those_of_snli():
    len_a, len_b = cases.snli_lengths(20_000, 50, 50, seed=3)
    assert abs(len_a.double().mean() - 15.1) < 0.2  # the development set's means, in tokens
    assert abs(len_b.double().mean() - 8.3) < 0.2
    assert torch.equal(len_a, cases.snli_lengths(20_000, 50, 50, seed=3)[0])
    assert cases.snli_lengths(20_000, 10, 8, seed=3)[0].max() == 10


def line(contender, seconds, case="d2l full", **changes):
    """A stored result that took about so long in each of ten rounds."""
    samples = [seconds * (1 + 0.01 * (k % 5)) for k in range(10)]
    quantiles = {"p20": seconds * 0.9, "p50": seconds, "p80": seconds * 1.2, "memory": 1 << 20, "samples": samples}
    how = {"direction": "forward", "graph": False, "hot": False, "threads": 2, "kind": "cpu", "device": "a processor"}
    rates = {"operations": 2e9, "bytes": 1e8, "bandwidth": 1e10, "rate": 1e11, "floor": 0.5e-3}
    about = {"case": case, "contender": contender, "size": "256 x 50 x 50, h=200, d=100, float32"}
    return {**about, **how, **quantiles, **rates, **changes}


def test_ratio_is_to_the_fastest_peer_and_the_latest_result_counts():
    peers = [line("eager", 3e-3), line("2 x SDPA", 2e-3)]
    lines = [line("coalign", 1.0), *peers, line("coalign", 1e-3), *peers]
    (found,) = report.ratios(lines)
    assert (found.ratio, found.coalign, found.fastest_peer) == ("2.00", "1 ms", "2 ms 2 x SDPA")
    assert found.target == "1.5 met"
    assert found.floor == "0.50"
    assert report.ratios([line("coalign", 1.0)]) == []
    (found,) = report.ratios([line("coalign", 1e-3), line("eager", 30.0, samples=[30.0], memory=None)])
    assert (found.fastest_peer, found.memory) == ("30 s eager, once", "1.0 : ? MiB")


def test_a_goal_may_be_a_share_of_the_floor():
    """Where the goal was set so, for replayed graphs, forward."""

    def target(seconds, **changes):
        how = {"case": "d2l full bfloat16, 8192 pairs", "kind": "cuda", "graph": True} | changes
        (found,) = report.ratios([line("coalign", seconds, **how), line("eager", 3e-3, **how)])
        return found.target

    assert [target(0.5e-3 / share) for share in (0.61, 0.59)] == ["0.6 of floor met", "0.6 of floor missed"]
    others = ({"graph": False}, {"direction": "forward + backward"}, {"kind": "cpu"}, {"case": "stream bfloat16, hot"})
    assert [target(1e-3, **changes) for changes in others] == [""] * 4


def test_absent_contenders_are_no_peers():
    absent = {name: v for name, v in line("2 x FlexAttention", 1.0).items() if name != "p50"} | {"absent": "no GPU"}
    (found,) = report.ratios([line("coalign", 1e-3), line("eager", 3e-3), absent])
    assert found.fastest_peer == "3 ms eager"


def test_a_slower_kernel_is_flagged_and_a_slower_machine_is_not():
    before = [line("coalign", 1e-3), line("eager", 3e-3)]
    slower_kernel = [line("coalign", 1.2e-3), line("eager", 3e-3)]
    slower_machine = [line("coalign", 1.5e-3), line("eager", 4.5e-3)]
    verdicts = [significance.changes(before, after)[0].verdict for after in (slower_kernel, slower_machine, before)]
    assert verdicts == ["SLOWER", "as before", "as before"]
    assert significance.changes(slower_kernel, before)[0].verdict == "faster"


def test_a_kernel_that_is_really_slowed_is_flagged(tmp_path):
    """Measured, in turns, not made up: the same call once and eight times over."""
    case = cases.Case("slowed", 16, 24, 20, h=64, d=32)
    inputs = [cases.make(case)]
    align = contenders.contenders(case, inputs[0])

    def measured(times):
        calls = {
            "coalign": [lambda: [align["coalign"](*inputs[0].padded) for _ in range(times)]],
            "eager": [lambda: align["eager"](*inputs[0].padded)],
        }
        return [
            line(timing.contender, timing.quantile(0.5), "slowed", samples=list(timing.samples))
            for timing in measure.take_turns(calls, 15)
        ]

    (change,) = significance.changes(measured(1), measured(8))
    assert change.verdict == "SLOWER"


def test_mann_whitney_knows_what_is_probable():
    x = [float(k) for k in range(20)]
    assert significance.mann_whitney(x, x) > 0.9
    assert significance.mann_whitney(x, [v + 100 for v in x]) < 1e-6
    assert significance.mann_whitney([1.0] * 5, [1.0] * 5) == 1.0
    # U = 3 of 25, so z = (9.5 - 0.5) / sqrt(25 * 11 / 12) = 1.88
    assert significance.mann_whitney([1.0, 2.0, 3.0, 4.0, 5.0], [3.5, 4.5, 5.5, 6.5, 7.5]) == pytest.approx(
        0.0601, abs=1e-4
    )


def test_operations_and_bytes_of_a_case():
    case = cases.Case("x", 2, 3, 4, h=5, d=6)
    forward, both = roofline.work(case, "forward"), roofline.work(case, "forward + backward")
    assert forward.operations == 2 * 2 * 3 * 4 * (5 + 6 + 6)
    assert forward.bytes == 2 * (3 + 4) * (5 + 6 + 6 + 1) * 4
    assert both.operations == forward.operations + 2 * 2 * 3 * 4 * (3 * 5 + 4 * 6)
    ceilings = roofline.Ceilings(bandwidth=1e9, rate=1e10)
    assert ceilings.floor(roofline.Work(1e10, 1.0)) == 1.0
    assert ceilings.floor(roofline.Work(1.0, 2e9)) == 2.0


def test_ceilings_are_measured():
    found = roofline.ceilings("cpu", torch.float32, 1)
    assert 1e8 < found.bandwidth < 1e13
    assert 1e9 < found.rate < 1e14


def test_results_are_only_ever_added_to(tmp_path):
    case = CASES["full"]
    timing = measure.Timing("coalign", (1e-3, 2e-3, 3e-3))
    for _ in range(2):
        results.append(tmp_path / "new" / "cpu.jsonl", [results.record(case, "forward", timing, 2)])
    first, second = results.read(tmp_path / "new" / "cpu.jsonl")
    assert first == second
    assert first["p50"] == 2e-3
    assert first["torch"] == torch.__version__
    assert first["size"] == "2 x 6 x 5, h=8, d=4, bfloat16"
    assert first["floor"] > 0
    assert results.key(case, "forward", False, 2, False) in results.keys([first])


def test_pictures_are_drawn_for_both_themes(tmp_path):
    pytest.importorskip("matplotlib")
    swept = [
        line(name, n * 1e-4, f"length {n}", size="4 x 64 x 64, h=64, d=64, float32")
        for n in (64, 128)
        for name in ("coalign", "eager")
    ]
    written = plots.draw([line("coalign", 1e-3), line("eager", 2e-3), *swept], tmp_path)
    names = {path.name for path in written}
    assert names == {f"{n}-{t}.png" for n in ("speedup", "roofline", "time", "memory") for t in ("light", "dark")}
    assert all(path.stat().st_size > 10_000 for path in written)


def test_predictions_are_stored_once(tmp_path, monkeypatch):
    monkeypatch.setattr(predict, "FOLDER", tmp_path)
    monkeypatch.setattr(predict, "predict", lambda device: {"made": "up"})
    predict.store()
    with pytest.raises(FileExistsError):
        predict.store()


def test_a_gpus_results_stand_beside_their_predictions():
    gpu = {"kind": "cuda", "architecture": "sm_90", "device": "a GPU", "graph": True}
    foreseen = predict.stored("sm_90")["SNLI packed bfloat16, 8192 pairs", "forward"]
    case = {"case": "SNLI packed bfloat16, 8192 pairs", **gpu}
    lines = [line("coalign", 2 * foreseen["graph"], **case), line("eager", 1.0, **case)]
    console = Console(width=250, record=True, file=io.StringIO())
    console.print(report.predicted(lines))
    text = console.export_text()
    assert foreseen["kernels"][0]["name"] in text
    assert "forward, graph" in text
    assert " 2.00 " in text
    assert report.scaling(lines) is None
    assert report.predicted([line("coalign", 1.0), line("eager", 1.0)]) is None
    assert report.scaling([line("coalign", 1.0, case="16 pairs")]).row_count == 1


def test_a_prediction_is_above_the_floor():
    pytest.importorskip("triton")
    if os.environ.get("TRITON_INTERPRET") == "1":
        pytest.skip("the interpreter compiles nothing")
    case = next(case for case in suites.gpu() if case.name == "SNLI packed bfloat16")
    for direction in measure.directions():
        found = predict._case(predict.H100, case, direction)
        assert found["floor"] < found["graph"] < found["calls"] < 1e-2


def stands_under(heading, table, page):
    """Whether the table follows a line that begins with the heading."""
    return re.search(rf"^{re.escape(heading)}[^|]*\n\n{re.escape(table)}", page, re.MULTILINE) is not None


def test_a_table_stands_under_its_own_processor():
    page = "**X, AVX2**, slow:\n\n| a |\n\n**Y, AVX512**:\n\n| b |\n"
    assert stands_under(report.heading([line("coalign", 1.0, device="X, AVX2")] * 2), "| a |", page)
    assert stands_under("**Y, AVX512**", "| b |", page)
    assert not stands_under("**X, AVX2**", "| b |", page)
    assert not stands_under("**X, AVX512**", "| a |", page)


@pytest.mark.parametrize(
    ("model_name", "shown"),
    [("AMD EPYC", "AMD EPYC (family 23, model 1), "), ("AMD EPYC 7571", "AMD EPYC 7571, ")],
)
def test_a_processor_whose_name_does_not_say_which_it_is(tmp_path, monkeypatch, model_name, shown):
    """Virtual machines call several generations by one name, and their results must not mix."""
    information = tmp_path / "cpuinfo"
    information.write_text(f"processor\t: 0\ncpu family\t: 23\nmodel\t\t: 1\nmodel name\t: {model_name}\n\n")
    monkeypatch.setattr(results, "Path", lambda path: information)
    assert results.device.__wrapped__("cpu").startswith(shown)


@pytest.mark.parametrize("name", ["operator", "model", "layers"])
def test_results_of_another_machine_can_be_shown(tmp_path, monkeypatch, capsys, name):
    path = tmp_path / "elsewhere" / "x.jsonl"
    monkeypatch.setattr(results, "device", lambda kind: "this machine")
    app = typer.Typer()
    app.command()(main)
    source = results.FOLDER / "amd-epyc-avx512" / f"{name}.jsonl"
    results.append(path, [found | {"device": "an abacus"} for found in results.read(source)])
    how = {"operator": [], "model": ["--model"], "layers": ["--layers"]}[name]
    shown = CliRunner().invoke(app, [*how, "--markdown", "--output", str(path)])
    assert shown.stdout.startswith("**an abacus**\n\n| ")
    missing = CliRunner().invoke(app, [*how, "--markdown"])
    assert missing.exit_code == 2
    assert "amd-epyc-avx512" in missing.output


def stored():
    return sorted(results.FOLDER.glob("*/operator.jsonl"))


@pytest.mark.parametrize("path", stored(), ids=lambda path: path.parent.name)
def test_readme_shows_the_stored_results(path):
    """Every processor's table is there, or in the page about performance, under the processor's name."""
    lines = results.read(path)
    pages = [(ROOT / name).read_text() for name in ("README.md", "docs/performance.md")]
    shown = [found for found in lines if found["case"] in {case.name for case in suites.cpu() + suites.gpu()}]
    assert any(stands_under(report.heading(lines), report.markdown(report.ratios(shown)), page) for page in pages)


def test_there_are_stored_results():
    assert stored()
