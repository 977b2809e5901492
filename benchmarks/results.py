"""Where results are kept: one JSON line a measurement, only ever added to."""

from __future__ import annotations

import datetime
import json
import platform
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

import coalign

from .cases import Case
from .measure import Direction, Timing

FOLDER = Path(__file__).with_name("results")


def record(case: Case, direction: Direction, timing: Timing, threads: int) -> dict[str, Any]:
    """One measurement with everything that one needs to repeat or to doubt it. Seconds and bytes."""
    return {
        "case": case.name,
        "size": case.size,
        "lengths": case.lengths,
        "packed": case.packed,
        "contender": timing.contender,
        "direction": direction,
        "p20": timing.p20,
        "p50": timing.p50,
        "p80": timing.p80,
        "rounds": timing.rounds,
        "memory": timing.memory,
        "threads": threads,
        **environment(),
    }


def environment() -> dict[str, Any]:
    """The machine, the versions, the state of the sources, the command and the day."""
    return {
        "device": device(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "coalign": coalign.__version__,
        "commit": _git("rev-parse", "--short=12", "HEAD"),
        "dirty": bool(_git("status", "--porcelain", "--untracked-files=no")),
        "date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d"),
        "command": shlex.join(["python", "-m", "benchmarks", *sys.argv[1:]]),
    }


def device() -> str:
    """The processor by name, its vector instructions and cores."""
    name = platform.processor() or platform.machine()
    information = Path("/proc/cpuinfo")
    if information.exists():
        lines = dict(line.split(":", 1) for line in information.read_text().splitlines() if ":" in line)
        name = next((v.strip() for k, v in lines.items() if k.strip() == "model name"), name)
    return f"{name}, {torch.backends.cpu.get_cpu_capability()}"


def append(path: Path, lines: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        file.writelines(json.dumps(line) + "\n" for line in lines)


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def _git(*arguments: str) -> str | None:
    done = subprocess.run(["git", *arguments], cwd=FOLDER.parent, capture_output=True, text=True)
    return done.stdout.strip() if done.returncode == 0 else None
