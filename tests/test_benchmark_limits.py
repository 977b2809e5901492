"""The benchmarks end in time on processors where a peer, or a product of matrices, takes far longer than elsewhere."""

import functools
from types import SimpleNamespace

import pytest
import torch

from benchmarks import cases, clock, contenders, measure, roofline


class Clock:
    """A clock that only calls move on."""

    def __init__(self, monkeypatch):
        self.now, self.called = 0.0, []
        monkeypatch.setattr(clock, "time", SimpleNamespace(perf_counter=lambda: self.now))

    def calls(self, name, seconds, sets=3):
        def call():
            self.called.append(name)
            self.now += seconds

        return [call] * sets


def test_a_slow_contender_does_not_hold_up_the_others(monkeypatch):
    """Seconds a call: 1 for the quick one, 5 for the slow one, 45 for the one that is slow beyond reason."""
    fake = Clock(monkeypatch)
    rounds = []
    calls = {name: fake.calls(name, seconds) for name, seconds in (("slow", 5), ("quick", 1), ("beyond", 45))}
    timings = {t.contender: t for t in measure.take_turns(calls, 15, lambda: rounds.append(1))}
    assert len(rounds) == 15
    assert timings["quick"].samples == (1,) * 15
    assert timings["slow"].samples == (5,) * 6
    assert timings["beyond"].samples == (45,)
    assert timings["beyond"].memory is None
    assert fake.called.count("beyond") == 1
    assert fake.called.count("slow") <= 3 + 6 + 1  # on each of the inputs, in its rounds, for its memory
    turns = "".join(name[0] for name in fake.called if name != "beyond")[6:-2]
    assert turns.count("s") == 6
    assert "ss" not in turns  # its rounds lie among the others'


def test_a_contender_of_which_few_calls_fit_in_has_the_fewest_samples(monkeypatch):
    (timing,) = measure.take_turns({"slow": Clock(monkeypatch).calls("slow", 9)}, 15)
    assert len(timing.samples) == measure.FEWEST
    (timing,) = measure.take_turns({"slow": Clock(monkeypatch).calls("slow", 9)}, 2)
    assert len(timing.samples) == 2


def test_what_a_first_call_compiles_is_no_sample(monkeypatch):
    case = cases.Case("full", 2, 6, 5, h=8, d=4, dtype=torch.bfloat16)
    fake = Clock(monkeypatch)
    called = []

    def compiled(*operands):
        called.append(1)
        fake.now += 1 if len(called) != 2 else 100  # the first one is that of the check, without gradients
        return contenders.eager(*operands, None, None)

    monkeypatch.setattr(contenders, "contenders", lambda *_: {"torch.compile": compiled})
    (timing,) = measure.compare(case, "forward + backward", rounds=4)
    assert timing.samples == (1,) * 4


@pytest.mark.parametrize(("half", "rate", "large"), [(1e9, 1e11, False), (2e11, 2e11, True)], ids=["slow", "fast"])
def test_a_floor_in_half_precision_may_widen_to_float32(monkeypatch, half, rate, large):
    """And no large product is made where a small one says that it would take long."""
    made = []

    def product(device, dtype, n):
        made.append((dtype, n))
        return 2 * n**3 / (1e11 if dtype == torch.float32 else half)

    monkeypatch.setattr(roofline, "_product", product)
    monkeypatch.setattr(roofline, "_bandwidth", lambda device, threads: 1e10)
    monkeypatch.setattr(roofline, "ceilings", functools.cache(roofline.ceilings.__wrapped__))  # nothing is known yet
    for dtype in (torch.bfloat16, torch.float16):
        assert roofline.ceilings("cpu", dtype, 1).rate == pytest.approx(rate)
        assert ((dtype, 2048) in made) == large
    assert roofline.ceilings("cpu", torch.float32, 1).rate == pytest.approx(1e11)
    assert made.count((torch.float32, 2048)) == 1
    assert roofline.ceilings("cuda", torch.bfloat16, 1).rate == pytest.approx(half)  # tensor cores are what counts
