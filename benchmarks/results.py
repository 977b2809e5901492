"""Where results are kept: one JSON line a measurement, only ever added to."""

from __future__ import annotations

import datetime
import json
import os
import platform
import re
import shlex
import subprocess
import sys
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from coalign.kernels.gpu import architecture

import coalign

from .cases import Case
from .measure import Timing
from .roofline import ceilings, work
from .targets import Direction

FOLDER = Path(__file__).with_name("results")
# what a time depends on, and results do not
SOURCES = (":(top)csrc", ":(top)kernels", ":(top)model", ":(top)src", ":(top,glob)benchmarks/*.py")
# by what a benchmark's lines are known; the first that fits
KINDS = {
    "operator": {"case", "contender", "direction", "graph", "hot", "threads", "kind", "device"},
    "model": {"case", "contender", "peer", "graph", "threads", "kind", "device"},
    "layers": {"case", "contender", "direction", "graph", "threads", "kind", "device"},
    "pipeline": {"case", "precision", "ratio"},
}


def record(case: Case, direction: Direction, timing: Timing, threads: int, kind: str = "cpu") -> dict[str, Any]:
    """One measurement with everything that one needs to repeat or to doubt it. Seconds, bytes, operations.

    kind: "cpu" or "cuda". Contenders that were absent have a reason and no numbers.
    """
    line: dict[str, Any] = {
        "case": case.name,
        "size": case.size,
        "lengths": case.lengths,
        "packed": case.packed,
        "contender": timing.contender,
        "direction": direction,
        "graph": timing.graph,
        "hot": timing.hot,
        "kind": kind,
        "threads": threads,
    }
    if timing.absent is not None:
        return line | {"absent": timing.absent} | environment(kind)
    done, most = work(case, direction), ceilings(kind, case.dtype, threads, case.tf32)
    return (
        line
        | {f"p{round(100 * q)}": timing.quantile(q) for q in (0.2, 0.5, 0.8)}
        | {
            "samples": [float(f"{t:.4g}") for t in timing.samples],
            "memory": timing.memory,
            "operations": done.operations,
            "bytes": done.bytes,
            "bandwidth": most.bandwidth,
            "rate": most.rate,
            "floor": most.floor(done),
        }
        | environment(kind)
    )


def environment(kind: str) -> dict[str, Any]:
    """The machine, the versions, the state of the sources, the command and the day."""
    return {
        "device": device(kind),
        "architecture": architecture(torch.device("cuda", torch.cuda.current_device())) if kind == "cuda" else "",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "triton": _version("triton"),
        "coalign": coalign.__version__,
        "commit": _git("rev-parse", "--short=12", "HEAD"),
        "dirty": _dirty(),
        "date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d"),
        "command": shlex.join(["python", "-m", "benchmarks", *sys.argv[1:]]),
    }


def _dirty() -> bool | None:
    """Whether sources differ from the commit, new ones among them; None: there is no commit to differ from."""
    changes = _git("status", "--porcelain", "--untracked-files=normal", "--", *SOURCES)
    return None if changes is None else bool(changes)


@cache
def device(kind: str) -> str:
    """The GPU by name; or the processor by name, and its vector instructions.

    Names such as AMD EPYC, which virtual machines give processors of any generation, go with family and model.
    """
    if kind != "cpu":
        return torch.cuda.get_device_name()
    name = platform.processor() or platform.machine()
    information = Path("/proc/cpuinfo")
    if information.exists():
        lines = (line.split(":", 1) for line in information.read_text().splitlines() if ":" in line)
        fields = {key.strip(): value.strip() for key, value in lines}
        name = fields.get("model name", name)
        if not re.search(r"\d", name) and {"cpu family", "model"} <= fields.keys():
            name += f" (family {fields['cpu family']}, model {fields['model']})"
    return f"{name}, {torch.backends.cpu.get_cpu_capability()}"


def file_of(kind: str, name: str = "operator") -> Path:
    """Where results of this device are kept."""
    return FOLDER / re.sub(r"[^a-z0-9]+", "-", device(kind).lower()).strip("-") / f"{name}.jsonl"


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def key(case: Case, direction: Direction, graph: bool, threads: int, hot: bool) -> tuple[Any, ...]:
    """What tells measurements of one commit apart."""
    return case.name, direction, graph, threads, hot, _git("rev-parse", "--short=12", "HEAD")


def keys(lines: list[dict[str, Any]]) -> set[tuple[Any, ...]]:
    names = ("case", "direction", "graph", "threads", "hot", "commit")
    return {tuple(line[name] for name in names) for line in lines if line["contender"] == "coalign"}


def model_key(case: str, graph: bool, threads: int) -> tuple[Any, ...]:
    """The same for measurements of the whole model."""
    return case, graph, threads, _git("rev-parse", "--short=12", "HEAD")


def model_keys(lines: list[dict[str, Any]]) -> set[tuple[Any, ...]]:
    return {(line["case"], line["graph"], line["threads"], line["commit"]) for line in lines}


def append(path: Path, lines: list[dict[str, Any]]) -> None:
    """Add lines, each of its own: also to a file whose last line was only half written."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab+") as file:
        if file.seek(0, os.SEEK_END):
            file.seek(-1, os.SEEK_END)
            if file.read(1) != b"\n":
                file.write(b"\n")
        file.write("".join(json.dumps(line) + "\n" for line in lines).encode())


class Unreadable(ValueError):
    """A file is not one of results, or of results of another kind; the message names file and line."""


def read(path: Path, kind: str | None = None) -> list[dict[str, Any]]:
    """A file's results.

    Args:
        kind: what they must be of: "operator", "model" or "layers"; None: of anything.

    Raises:
        Unreadable: a line is damaged, or of another kind.
    """
    lines = []
    for number, text in enumerate(path.read_bytes().splitlines(), 1):
        try:
            line = json.loads(text)
        except ValueError as error:
            raise Unreadable(f"{path}, line {number} is damaged: {error}") from None
        if not isinstance(line, dict):
            raise Unreadable(f"{path}, line {number} is damaged: no result, but {line!r}")
        if kind not in (None, found := _kind(line)):
            raise Unreadable(f"{path}, line {number} is of the benchmark {found!r}, not {kind!r}")
        lines.append(line)
    return lines


def _kind(line: dict[str, Any]) -> str:
    """Which benchmark a line is of."""
    return next((kind for kind, names in KINDS.items() if names <= line.keys()), "unknown")


@cache
def _git(*arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", *arguments], cwd=FOLDER.parent, capture_output=True, text=True)
    except FileNotFoundError:  # git is not installed
        return None
    return done.stdout.strip() if done.returncode == 0 else None
