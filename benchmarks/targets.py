"""What was set as the goal before anything was measured: the fastest peer's time in units of coalign's."""

from __future__ import annotations

from typing import Literal

Direction = Literal["forward", "forward + backward"]

CPU = {
    "d2l full": (1.5, 1.3),
    "SNLI padded": (8, 5.5),
    "SNLI packed": (12, 10),
    "SNLI padded bfloat16": (8, 5.5),
    "SNLI packed bfloat16": (8, 5.5),
    "stream": (1.9, 2.0),
    "stream bfloat16": (3, 3),
    "one pair 15 x 8": (1.5, 1.3),
    "one pair 50 x 50": (1.5, 1.3),
}

# on an H100; the first number of a pair of pairs is for plain calls, the second for replayed CUDA graphs
GPU = {
    "d2l full bfloat16": ((4, 4), (3, 3)),
    "d2l full TF32": ((4, 4), (3, 3)),
    "SNLI packed bfloat16": ((8, 8), (8, 8)),
    "SNLI packed bfloat16, 8192 pairs": ((8, 8), (8, 8)),
    "stream bfloat16": ((1.2, 1.3), (1.2, 1.3)),
    "masked 200/100 bfloat16": ((2, 2), (2, 2)),
}
FLOOR_FRACTION = {"d2l full bfloat16, 8192 pairs": 0.6}  # of the roofline's floor, forward, as a graph


def target(device: str, case: str, direction: Direction, graph: bool) -> float | None:
    """The ratio to reach; device: "cpu" or "cuda". None: there is no goal."""
    both = CPU.get(case) if device == "cpu" else GPU[case][graph] if case in GPU else None
    return None if both is None else both[direction == "forward + backward"]


def share_of_floor(device: str, case: str, direction: Direction, graph: bool) -> float | None:
    """The share of the roofline's floor to reach. None: there is no goal."""
    return FLOOR_FRACTION.get(case) if device == "cuda" and graph and direction == "forward" else None
