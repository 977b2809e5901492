"""What of the kernels' gain the commands keep: results of `training` and `predict_command`, for the README."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

import torch

from . import results


def store(command: str, source: str, units: int, times: dict[str, list[float]], **about: Any) -> dict[str, Any]:
    """Add a result to the device's file, and return it.

    Args:
        command: "train" or "predict". source: the file of pairs. units: pairs that each sample is the time of.
        times: seconds of the "bare" model and of the "command", in turns; the first of each warmed up.
    """
    rates = {side: units / statistics.median(seconds[1:]) for side, seconds in times.items()}
    module = {"train": "training", "predict": "predict_command"}[command]
    line = {
        "case": f"coalign {command}",
        **about,
        "pairs": units,
        "threads": torch.get_num_threads(),
        **{f"{side} pairs/s": round(rate) for side, rate in rates.items()},
        "ratio": round(rates["command"] / rates["bare"], 3),
        "samples": {side: [float(f"{t:.4g}") for t in seconds] for side, seconds in times.items()},
        **results.environment("cpu"),
        "command": f"python -m benchmarks.{module} {Path(source).name}",
    }
    results.append(results.file_of("cpu", "pipeline"), [line])
    return line


def sentence(lines: list[dict[str, Any]]) -> str:
    """What the README says of the latest results."""
    latest = {(line["case"], line["precision"]): f"{line['ratio']:.2f}" for line in lines}
    train = latest["coalign train", "float32"]
    predict, half = (latest["coalign predict", precision] for precision in ("float32", "bfloat16"))
    return (
        f"`coalign train` keeps {train} of the bare training step's rate, and `coalign predict` {predict} of the "
        f"frozen model's ({half} in bfloat16), reading and writing files included."
    )
