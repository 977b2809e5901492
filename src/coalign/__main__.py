"""python -m coalign."""

from .cli import app

app(prog_name="coalign")
