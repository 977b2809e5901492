"""The benchmarks measure what they say, refuse wrong contenders, and the README shows what they found."""

from pathlib import Path

import pytest
import torch

from benchmarks import cases, contenders, measure, report, results

ROOT = Path(__file__).parents[1]
CASES = {
    "padded": cases.Case("padded", 3, 6, 5, h=8, d=4, lengths="snli"),
    "packed": cases.Case("packed", 3, 6, 5, h=8, d=4, lengths="snli", packed=True),
    "full": cases.Case("full", 2, 6, 5, h=8, d=4, dtype=torch.bfloat16),
}
HERE = ("coalign", "eager", "2 x SDPA")  # torch.compile would take seconds


@pytest.mark.parametrize("direction", measure.directions())
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_contenders_are_timed(case, direction):
    rounds = []
    timings = measure.compare(case, direction, rounds=2, sets=2, only=HERE, step=lambda: rounds.append(1))
    assert [t.contender for t in timings] == list(HERE)
    assert len(rounds) == 2
    for timing in timings:
        assert 0 < timing.p20 <= timing.p50 <= timing.p80 < 1


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
    seen = measure.peak_memory(lambda: torch.ones(16 << 20))
    if seen is None:
        pytest.skip("the system does not tell a process its peak memory")
    assert 50 << 20 < seen < 90 << 20


def test_lengths_are_those_of_snli():
    len_a, len_b = cases.snli_lengths(20_000, 50, 50, seed=3)
    assert abs(len_a.double().mean() - 15.1) < 0.2  # the development set's means, in tokens
    assert abs(len_b.double().mean() - 8.3) < 0.2
    assert torch.equal(len_a, cases.snli_lengths(20_000, 50, 50, seed=3)[0])
    assert cases.snli_lengths(20_000, 10, 8, seed=3)[0].max() == 10


def test_ratio_is_to_the_fastest_peer_and_the_latest_result_counts():
    def line(contender, seconds):
        quantiles = {"p20": seconds * 0.9, "p50": seconds, "p80": seconds * 1.2, "memory": 1 << 20}
        return {"case": "d2l full", "direction": "forward", "contender": contender, **quantiles}

    lines = [line("coalign", 1.0), line("eager", 3e-3), line("2 x SDPA", 2e-3), line("coalign", 1e-3)]
    (found,) = report.ratios(lines)
    assert (found.ratio, found.coalign, found.fastest_peer) == ("2.00", "1 ms", "2 ms 2 x SDPA")
    assert found.target == "1.5 met"
    assert report.ratios([line("coalign", 1.0)]) == []


def test_results_are_only_ever_added_to(tmp_path):
    case = CASES["full"]
    timing = measure.Timing("coalign", 1e-3, 2e-3, 3e-3, 15, None)
    for _ in range(2):
        results.append(tmp_path / "new" / "cpu.jsonl", [results.record(case, "forward", timing, 2)])
    first, second = results.read(tmp_path / "new" / "cpu.jsonl")
    assert first == second
    assert first["p50"] == 2e-3
    assert first["torch"] == torch.__version__
    assert first["size"] == "2 x 6 x 5, h=8, d=4, bfloat16"


def test_readme_shows_the_stored_results():
    stored = results.read(results.FOLDER / "cpu.jsonl")
    readme = (ROOT / "README.md").read_text()
    assert report.markdown(report.ratios(stored)) in readme
    assert stored[-1]["device"] in readme
