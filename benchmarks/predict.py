"""How long each GPU case should take, written down before any GPU has measured it: to be confirmed, or refuted.

A kernel takes a launch and then the longer of moving its bytes and doing its operations; how much of the matrix rate
it gets is guessed from how many of its warps fit on a multiprocessor, which the compiled code tells.
"""

from __future__ import annotations

import datetime
import json
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

import torch
from coalign.kernels.problem import Side

from .cases import Case, lengths_of
from .roofline import work
from .suites import gpu
from .targets import Direction

FOLDER = Path(__file__).with_name("predictions")


class Device(NamedTuple):
    """A GPU as its data sheet has it: bytes a second, operations a second by arithmetic, multiprocessors."""

    name: str
    architecture: str
    bandwidth: float
    rates: dict[str, float]
    multiprocessors: int


H100 = Device("NVIDIA H100 SXM", "sm_90", 3.35e12, {"half": 989e12, "tf32": 495e12, "ieee": 67e12}, 132)
LAUNCH = 4e-6  # of a kernel from Python, when nothing else is in the way; within a graph 1.5e-6
IN_GRAPH = 1.5e-6
MATRIX_SHARE = {"half": 0.35, "tf32": 0.35, "ieee": 0.5}  # of the rate at full occupancy, for products so small


def predict(device: Device = H100) -> dict[str, Any]:
    """A prediction for every GPU case in both directions, in seconds, and what it was made from."""
    lines = [_case(device, case, direction) for case in gpu() for direction in ("forward", "forward + backward")]
    return {
        "device": device._asdict(),
        "model": {"launch": LAUNCH, "launch in a graph": IN_GRAPH, "share of the matrix rate": MATRIX_SHARE},
        "torch": torch.__version__,
        "date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d"),
        "predictions": lines,
    }


def store(device: Device = H100) -> Path:
    """Write them, unless they are there already: what was predicted is not changed once it can be checked.

    Raises:
        FileExistsError: they are.
    """
    FOLDER.mkdir(exist_ok=True)
    path = FOLDER / f"{device.architecture}.json"
    text = json.dumps(predict(device), indent=1) + "\n"
    with path.open("x") as file:
        file.write(text)
    return path


def stored(architecture: str) -> dict[tuple[str, str], dict[str, Any]]:
    """The predictions for an architecture by case and direction; none where nobody has made them."""
    path = FOLDER / f"{architecture}.json"
    lines = json.loads(path.read_text())["predictions"] if path.is_file() else []
    return {(line["case"], line["direction"]): line for line in lines}


def _case(device: Device, case: Case, direction: Direction) -> dict[str, Any]:
    from coalign.kernels.triton.report import ARCHITECTURES, compile_case, plan
    from coalign.kernels.triton.report import Case as Compilation

    architecture = ARCHITECTURES[device.architecture]
    arithmetic = "half" if case.dtype.itemsize == 2 else "tf32" if case.tf32 else "ieee"
    forward, backward = plan(*_sides(case), arithmetic, architecture)
    launches = forward if direction == "forward" else forward + backward
    kernels = [compile_case(Compilation(of.kernel.__name__, arithmetic, of), architecture) for of in launches]
    done = work(case, direction)
    occupancy = min(k.occupancy for k in kernels)
    warps = max(prod(of.grid) * of.choice.num_warps for of in launches)
    filled = min(1.0, warps / (device.multiprocessors * architecture.warps * occupancy))
    rate = device.rates[arithmetic] * MATRIX_SHARE[arithmetic] * min(1.0, occupancy * 4) * filled
    busy = max(done.bytes / device.bandwidth, done.operations / rate)
    return {
        "case": case.name,
        "size": case.size,
        "direction": direction,
        "calls": len(kernels) * LAUNCH + busy,
        "graph": len(kernels) * IN_GRAPH + busy,
        "floor": max(done.bytes / device.bandwidth, done.operations / device.rates[arithmetic]),
        "kernels": [
            {
                "name": k.case.name,
                "registers": k.registers,
                "spilled": k.spilled,
                "shared": k.shared,
                "occupancy": round(k.occupancy, 3),
            }
            for k in kernels
        ],
    }


def _sides(case: Case) -> tuple[Side, Side]:
    """A case's operands without data."""

    def side(rows: int, lengths: torch.Tensor) -> Side:
        total = (int(lengths.sum()),) if case.packed else (case.pairs, rows)
        f, x = (torch.empty(*total, width, dtype=case.dtype, device="meta") for width in (case.h, case.d))
        entries = case.pairs + 1 if case.packed else case.pairs
        extent = None if case.lengths == "full" else torch.empty(entries, dtype=torch.int32, device="meta")
        return Side(f, x, extent, rows)

    len_a, len_b = lengths_of(case)
    return side(case.m, len_a), side(case.n, len_b)
