"""What the benchmarks do for a GPU that is there for minutes, tested without one: graphs, warming up, tuning."""

import time

import pytest

from benchmarks import cases, clock, contenders, measure, model_cases, tune, warm_up

CASE = cases.Case("padded", 3, 6, 5, h=8, d=4, lengths="snli")


def test_what_a_graph_cant_hold_is_named_and_the_others_are_timed(monkeypatch):
    def graphed(call):
        if next(names) == "eager":
            raise clock.NotCaptured("can't be captured in a CUDA graph: it waits")
        return call

    names = iter(["coalign", "eager"])
    monkeypatch.setattr(measure, "graphed", graphed)
    found = measure.compare(CASE, "forward", rounds=1, sets=1, graph=True, only=("coalign", "eager"))
    assert [(timing.contender, timing.absent is None) for timing in found] == [("eager", False), ("coalign", True)]
    assert "waits" in found[0].absent


def test_contenders_can_be_left_out():
    found = measure.compare(CASE, "forward", rounds=1, only=("coalign", "eager"), without=("eager",))
    assert {timing.contender: timing.absent for timing in found} == {
        "eager": "left out for want of time",
        "coalign": None,
    }


def test_what_a_run_compiles_is_compiled_beforehand_but_for_what_chooses_by_timing(monkeypatch):
    asked = []
    monkeypatch.setattr(warm_up, "each", lambda call, items, processes: asked.append((call, items, processes)))
    warm_up.operator([CASE], 3, without=("2 x FlexAttention",))
    warm_up.model(model_cases.CASES["cuda"][:1], 2)
    (compare, items, processes), (run_model, models, _) = asked
    assert [direction for _, direction, _ in items] == list(measure.directions())
    assert "torch.compile" in items[0][2]
    assert not {contenders.TUNED, "2 x FlexAttention"} & set(items[0][2])
    assert processes == 3
    assert models == [(model_cases.CASES["cuda"][0],)]
    given = []
    monkeypatch.setattr(warm_up, "compare", lambda *of, **how: given.append((of, how)))
    monkeypatch.setattr(warm_up.whole_model, "run", lambda *of, **how: given.append((of, how)))
    compare(*items[0])
    run_model(*models[0])
    assert [how["device"] for _, how in given] == ["cuda", "cuda"]


def test_the_tuner_keeps_what_is_fastest_and_stops_in_time(monkeypatch):
    times = {("x", None): 1.0, ("x", 1): 0.9, ("x", 2): 0.5, ("y", None): 1.0, ("y", 1): 0.99, ("z", None): 1.0}

    def time_of(key, value):
        return times.get((key, value and value[0]))

    asked = {"x": [[1], [2], [3]], "y": [[1], [2]], "z": [[7]]}
    assert list(tune.search(asked, time_of, time.monotonic() + 60)) == [("x", [2], 0.5, 1.0)]
    assert list(tune.search(asked, time_of, time.monotonic() - 1)) == []


def test_every_candidate_has_a_case_that_uses_it():
    choices = pytest.importorskip("coalign.kernels.triton.choices")

    def chosen(key):
        kernel, direction, kind, size = key.split()
        if kernel == "frozen":
            found = choices.frozen(int(size), 200, kind)
            return found, [found.num_warps, found.blocks["BLOCK_H"]]
        case, backward = tune.case_of(key), direction == "backward"
        assert choices.arithmetic(case.dtype, case.tf32) == kind
        if kernel == "stream":
            found = choices.stream(case.h, case.d, kind, 1 << 20, backward)
            return found, [found.num_warps, found.num_stages]
        found = choices.tile(case.m, kernel == "ragged", case.h, case.d, kind, backward)
        return found, [found.num_warps, found.num_stages, found.blocks["BLOCK_H"], found.blocks["BLOCK_D"]]

    for key, values in tune.candidates().items():
        plan, own = chosen(key)
        choices.trial[key] = values[0]
        try:
            tried, found = chosen(key)
        finally:
            choices.trial.clear()
        assert found == values[0][-len(found) :]
        assert plan != tried or own == found
