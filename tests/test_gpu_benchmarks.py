"""What the benchmarks do for a GPU that is there for minutes, tested without one: graphs, warming up, tuning."""

import json
import os
import time
from dataclasses import replace

import pytest
import torch

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


def noting(monkeypatch):
    """What processes are asked for from now on, which do nothing: (call, items, how many processes)."""
    asked = []

    class Noting:
        def __init__(self, count):
            self.count = count

        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

        def each(self, call, items):
            asked.append((call, items, self.count))

    monkeypatch.setattr(warm_up, "Processes", Noting)
    return asked


def test_what_a_run_compiles_is_compiled_beforehand_but_for_what_chooses_by_timing(monkeypatch):
    asked = noting(monkeypatch)
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

    timed = []

    def time_of(key, value):
        timed.append((key, value))
        return times.get((key, value and value[0]))

    asked = {"x": [[1], [2], [3]], "y": [[1], [2]], "z": [[7]]}
    prepared = []

    def prepare(key, values):
        assert not any(known == key for known, _ in timed)
        prepared.append((key, values))

    assert list(tune.search(asked, prepare, time_of, time.monotonic() + 60)) == [("x", [2], 0.5, 1.0)]
    assert prepared == list(asked.items())
    prepared.clear()
    assert list(tune.search(asked, prepare, time_of, time.monotonic() - 1)) == []
    assert prepared == []


def test_the_tuner_writes_what_is_faster_beside_what_is_known(monkeypatch, tmp_path):
    asked = noting(monkeypatch)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "a GPU")
    monkeypatch.setattr(tune, "architecture", lambda device: "sm_1")
    monkeypatch.setattr(tune, "FOLDER", tmp_path)
    (tmp_path / "sm_1.json").write_text('{"choices": {"tile forward ieee 16": [1, 1, 32, 32]}}')
    fastest = [4, 2, 64, 64]
    monkeypatch.setattr(
        tune, "time_on_gpu", lambda key, value: {None: 2.0, (4, 2, 64, 64): 1.0}.get(value and tuple(value))
    )
    tune.main(limit=60, processes=3, only="tile forward half 64")
    written = json.loads((tmp_path / "sm_1.json").read_text())
    assert written["choices"] == {"tile forward ieee 16": [1, 1, 32, 32], "tile forward half 64": fastest}
    assert written["device"] == "a GPU"
    ((_, items, processes),) = asked
    assert ("tile forward half 64", fastest) in items
    assert processes == 3


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


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("lengths", ["full", "snli"])
def test_a_choice_with_wrong_gradients_is_none(lengths, dtype):
    case = replace(CASE, lengths=lengths, dtype=dtype)
    inputs = cases.make(case)
    align = contenders.contenders(case, inputs)["coalign"]
    measure.check_gradients(case, align, inputs)

    def wrong(*operands):
        beta, alpha = align(*operands)
        return beta + (beta.detach() - beta) / 8, alpha  # the same outputs

    measure.check(case, "coalign", wrong, inputs)
    with pytest.raises(measure.Wrong, match="gradient of f_a is off by"):
        measure.check_gradients(case, wrong, inputs)


def test_processes_go_on_after_one_of_them_died(tmp_path):
    with warm_up.Processes(1) as pool:
        pool.each(os.mkdir, [(tmp_path / "before",), (tmp_path / "nowhere" / "below",)])
        pool.each(os._exit, [(1,)])
        pool.each(os.mkdir, [(tmp_path / "after",)])
    assert {path.name for path in tmp_path.iterdir()} == {"before", "after"}
