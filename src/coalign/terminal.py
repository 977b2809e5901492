"""What the commands share: where they print, how they fail, options that mean the same everywhere."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, NoReturn

import torch
import typer
from rich.console import Console
from rich.markup import escape

from .kernels import BACKENDS
from .model.nli.ranks import own_device

# a pipe has no width that tables would have to fit in
console = Console(width=None if Console().is_terminal or "COLUMNS" in os.environ else 1000)
complaints = Console(stderr=True)

BackendOption = Annotated[
    str | None, typer.Option(help=f"{', '.join(BACKENDS)}: this one or fail; default: the first that can serve.")
]
DeviceOption = Annotated[str | None, typer.Option(help="cpu or cuda; default: cuda where there is one.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")]


def device_named(name: str | None) -> torch.device:
    """The device of --device, once it has been seen to work; the command fails where it does not.

    A process of several that were launched together gets the GPU with its own number, unless name has one.
    """
    try:
        device = own_device(torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu")))
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError) as error:
        fail(f"--device {name}: {str(error).splitlines()[0]}")
    return device


def names_in(option: str) -> tuple[str, ...]:
    """The names that an option lists, with commas between."""
    return tuple(name.strip() for name in option.split(","))


@contextmanager
def quiet(silent: bool) -> Iterator[None]:
    """Nothing is printed in the block, if silent; otherwise all is, in a silent block too."""
    before = complaints.quiet
    console.quiet = complaints.quiet = silent
    try:
        yield
    finally:
        console.quiet = complaints.quiet = before


def fail(message: str) -> NoReturn:
    """Print the message as an error and end the command with status 1."""
    complaints.print(f"[red]error:[/] {escape(message)}", highlight=False, soft_wrap=True)
    raise typer.Exit(1)
