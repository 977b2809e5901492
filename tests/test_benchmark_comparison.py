"""What results are compared with: peers of their own run, on their own device, and as many samples as it takes."""

from test_benchmarks import line

from benchmarks import report, significance


def absent(contender):
    return {name: value for name, value in line(contender, 1.0).items() if name != "p50"} | {"absent": "too long"}


def ratio(lines):
    return [(found.direction, found.ratio) for found in report.ratios(lines)]


def test_peers_are_those_of_the_same_run():
    before = [line("coalign", 1e-3), line("eager", 3e-3), line("2 x SDPA", 2e-3)]
    later = [line("coalign", 1e-3), line("eager", 3e-3)]
    assert ratio([*before, *later]) == [("forward", "3.00")]
    assert ratio([*before, absent("2 x SDPA"), *later]) == [("forward", "3.00")]
    assert ratio([*later, *before]) == [("forward", "2.00")]
    other_day = [{**found, "date": "2026-01-02"} for found in later]
    assert ratio([*before[:1], *before[2:], *reversed(other_day)]) == [("forward", "3.00")]


def test_a_run_without_peers_is_left_out():
    assert ratio([line("coalign", 1e-3), line("eager", 3e-3), line("coalign", 2e-3)]) == [("forward", "3.00")]
    assert ratio([line("coalign", 1e-3, device="another"), line("eager", 3e-3)]) == []


def test_devices_and_threads_do_not_mix():
    one = [line("coalign", 1e-3), line("eager", 2e-3)]
    other = [{**found, "device": "another", "p50": found["p50"] ** 2} for found in one]
    alone = [line("coalign", 2e-3, threads=1), line("eager", 8e-3, threads=1)]
    assert ratio(one) == [("forward", "2.00")]
    assert ratio([*one, *other]) == [("forward, a processor", "2.00"), ("forward, another", "4.00")]
    assert ratio([*one, *alone]) == [("forward, 2 threads", "2.00"), ("forward, 1 thread", "4.00")]


def test_a_comparison_is_in_units_of_the_peers_of_both():
    before = [line("coalign", 1e-3), line("eager", 3e-3), line("2 x SDPA", 2e-3)]
    after = [line("coalign", 1e-3), line("eager", 3e-3), line("torch.compile", 30e-3)]
    (change,) = significance.changes(before, after)
    assert (change.factor, change.verdict) == (1.0, "as before")
    assert significance.changes(before[::2], after[:2]) == []


def test_a_shift_as_between_runs_of_unchanged_code_is_no_change():
    def verdict(factor):
        peer = line("eager", 3e-3)
        (change,) = significance.changes([line("coalign", 1e-3), peer], [line("coalign", factor * 1e-3), peer])
        assert change.probability < significance.PROBABILITY
        return change.verdict

    assert [verdict(factor) for factor in (1.13, 1 / 1.13, 1.2, 1 / 1.2)] == ["as before"] * 2 + ["SLOWER", "faster"]


def test_few_samples_are_no_evidence():
    def verdict(count, factor):
        peer, samples = line("eager", 3e-3), [1e-3 + 1e-6 * k for k in range(count)]
        now = line("coalign", 1e-3, samples=[factor * sample for sample in samples])
        return significance.changes([line("coalign", 1e-3, samples=samples), peer], [now, peer])[0].verdict

    assert [verdict(count, 2) for count in (1, 5, 6)] == ["too few samples"] * 2 + ["SLOWER"]
    assert verdict(5, 1) == "too few samples"
