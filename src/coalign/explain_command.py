"""The command `coalign explain`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .draw import check_picture
from .draw_explanation import cuts, plot_explanation, print_explanation
from .draw_html import page
from .kernels import BackendUnavailable
from .model.atomic import check_writable, replacing
from .model.nli import explain_pair, load_checkpoint
from .predict import CheckpointArgument
from .terminal import BackendOption, console, fail


def explain(
    model: CheckpointArgument,
    premise: Annotated[str, typer.Argument(help="The first sentence, in quotes.")],
    hypothesis: Annotated[str, typer.Argument(help="The second one.")],
    out: Annotated[
        Path | None, typer.Option(help="Write .html, .png, .svg or .pdf; default: print in the terminal.")
    ] = None,
    backend: BackendOption = None,
) -> None:
    """Show how a trained model aligns two sentences, and what each word contributes to its answer."""
    is_page = out is not None and out.suffix.lower() in (".html", ".htm")
    try:
        if out is not None:
            (check_writable if is_page else check_picture)(out)
        found = explain_pair(load_checkpoint(model), premise, hypothesis, backend=backend)
        if out is None:
            print_explanation(found, console)
            return
        if is_page:
            with replacing(out) as unfinished:
                unfinished.write_text(page(found), encoding="utf-8")
        else:
            plot_explanation(found, out)
    except (ValueError, OSError, ImportError, BackendUnavailable) as error:
        fail(str(error))
    for line in (f"{found.label}; wrote {out}", *cuts(found)):
        console.print(line, markup=False, highlight=False, soft_wrap=True)
