"""Checkpoints: tensors as safetensors, all else as one JSON file, which is written last and names the tensors."""

from __future__ import annotations

import glob
import json
import os
import platform
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from ..atomic import replacing, save_tensors
from ..decomposable_attention import DecomposableAttention
from .rows import DataError
from .settings import Settings
from .vocabulary import Vocabulary

_FORMAT = 1
NOT_FINITE = "the model's scores are not finite: its training went wrong"


@dataclass
class Checkpoint:
    """A model with all that using it, or training it further, needs.

    Attributes:
        settings, vocabulary, labels: as it was trained. model: its state dict.
        epoch, batch, step: where training stands: batches of an epoch done, and steps in all.
        sums: loss and right answers of the epoch so far. history: each epoch's numbers. best: the best accuracy.
        optimizer: its state dict; None in what is only kept for use.
        digest, validated: of the training and the validation pairs (`Corpus.digest`); "" where there are none, and in
            what earlier versions wrote.
    """

    settings: Settings
    vocabulary: Vocabulary
    labels: tuple[str, ...]
    model: dict[str, Tensor]
    epoch: int = 0
    batch: int = 0
    step: int = 0
    sums: dict[str, float] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)
    best: float = -1.0
    optimizer: dict[str, Any] | None = None
    digest: str = ""
    validated: str = ""

    def build(self) -> DecomposableAttention:
        """The model, in evaluation mode."""
        made = self.settings.model(len(self.vocabulary), len(self.labels))
        self.load_into(made)
        return made.eval()

    def load_into(self, model: DecomposableAttention) -> None:
        """Give a model of these settings its parameters. Raises DataError where they are another model's."""
        try:
            model.load_state_dict(self.model)
        except RuntimeError as error:
            reason = str(error).splitlines()[1:2] or [str(error)]
            raise DataError(f"the checkpoint's tensors do not fit its settings: {reason[0].strip()}") from None


_PLAIN = ("epoch", "batch", "step", "sums", "history", "best")


def save_checkpoint(checkpoint: Checkpoint, path: Path) -> None:
    """Write path, a .json, and beside it <name>-<step>.safetensors. Killed at any moment, the previous ones remain.

    Raises:
        OSError: the folder can't be written to.
    """
    tensors = {f"model.{name}": t.detach().cpu().contiguous() for name, t in checkpoint.model.items()}
    about: dict[str, Any] = {
        "format": _FORMAT,
        "settings": asdict(checkpoint.settings),
        "labels": checkpoint.labels,
        "parameters": sum(t.numel() for name, t in checkpoint.model.items() if name != "embedding.weight"),
        **{name: getattr(checkpoint, name) for name in _PLAIN},
        "digest": checkpoint.digest,
        "validated": checkpoint.validated,
        "versions": {"torch": torch.__version__, "python": platform.python_version()},
    }
    if checkpoint.optimizer is not None:
        about["optimizer"] = _split_optimizer(checkpoint.optimizer, tensors)
    file = path.with_name(f"{path.stem}-{checkpoint.step}.safetensors")
    save_tensors(tensors, file)
    about |= {"tensors": file.name, "vocabulary": checkpoint.vocabulary.tokens}
    with replacing(path) as unfinished:
        unfinished.write_text(json.dumps(about, indent=1))
    for old in path.parent.glob(f"{glob.escape(path.stem)}-*.safetensors"):
        if old != file and old.stem.removeprefix(f"{path.stem}-").isdigit():
            old.unlink()


def load_checkpoint(path: str | os.PathLike[str]) -> Checkpoint:
    """Read what `save_checkpoint` wrote: a .json, or a folder whose best.json is meant.

    Raises:
        OSError: a file is missing. DataError: it is no checkpoint, or of another version's format.
    """
    path = Path(path)
    if path.is_dir():
        last, path = path / "last.json", path / "best.json"
        if last.exists() and not path.exists():
            raise FileNotFoundError(
                f"{path.parent} has no best.json, which the first whole epoch leaves; there is {last}"
            )
    try:
        about = json.loads(path.read_text())
        if about["format"] != _FORMAT:
            raise DataError(f"{path} has the format {about['format']}; this version reads {_FORMAT}")
        file = path.with_name(about["tensors"])
        try:
            tensors = load_file(file)
        except SafetensorError as reason:
            raise DataError(f"{file}, which {path.name} names, is damaged: {reason}") from None
        model = {k.removeprefix("model."): t for k, t in tensors.items() if k.startswith("model.")}
        settings, labels = Settings(**about["settings"]), about["labels"]
        if not isinstance(labels, list) or not all(isinstance(name, str) for name in labels):
            raise ValueError(f"the labels must be a list of names, not {labels!r}")
        settings.reading(labels=tuple(labels))  # raises of names that no data could have
        classes = len(model["aggregate.linear.weight"])
        if len(labels) != classes:
            raise ValueError(f"it names {len(labels)} labels, but {file.name} holds a model of {classes} classes")
        return Checkpoint(
            settings,
            Vocabulary.from_tokens(about["vocabulary"]),
            tuple(labels),
            model,
            **{name: about[name] for name in _PLAIN},
            optimizer=_joined_optimizer(about["optimizer"], tensors) if "optimizer" in about else None,
            digest=about.get("digest", ""),
            validated=about.get("validated", ""),
        )
    except (ValueError, KeyError, TypeError) as reason:
        if isinstance(reason, DataError):
            raise
        raise DataError(f"{path} is no checkpoint of this program: {reason}") from None


def _split_optimizer(state: dict[str, Any], tensors: dict[str, Tensor]) -> dict[str, Any]:
    """An optimiser's state without its tensors, which go to tensors by parameter and name."""
    for number, of_parameter in state["state"].items():
        for name, value in of_parameter.items():
            tensors[f"optimizer.{number}.{name}"] = torch.as_tensor(value).detach().cpu().contiguous()
    return {"param_groups": state["param_groups"]}


def _joined_optimizer(about: dict[str, Any], tensors: dict[str, Tensor]) -> dict[str, Any]:
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        if key.startswith("optimizer."):
            _, number, name = key.split(".", 2)
            state.setdefault(int(number), {})[name] = value
    return {"state": dict(sorted(state.items())), "param_groups": about["param_groups"]}
