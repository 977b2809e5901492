"""Training the model: epochs, evaluation, checkpoints, going on where a run stopped."""

from __future__ import annotations

import csv
import io
import math
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .atomic import replacing
from .checkpoint import Checkpoint, save_checkpoint
from .corpus import Corpus
from .evaluation import evaluate
from .packed_batches import LabelledPairs
from .settings import Settings
from .vocabulary import Vocabulary

LAST, BEST, FAILED = "last.json", "best.json", "failed.json"
_STEPS_UNSEEN = 50  # steps on a GPU between looks at the loss, each of which waits for it


class TrainingError(RuntimeError):
    """Training can't go on; the message says at which step, why, and where the state was saved."""


@dataclass(frozen=True)
class Progress:
    """Where an epoch stands: mean loss and accuracy of its `pairs` pairs so far, while they are trained on."""

    epoch: int
    pairs: int
    loss: float
    accuracy: float


class Training:
    """A run in a folder: last.json to go on from, best.json by validation accuracy, log.csv with a line an epoch.

    Args:
        settings: its choices. training: the pairs. validation: pairs to evaluate on after each epoch, or None; the
            best epoch is then the one of the best training accuracy.
        folder: where everything is written; made where it is missing.
        vectors: (words, embed_size) for the vocabulary, or None: random.
        vocabulary: None: made from the training pairs, as the settings say.
        resume: what `load_checkpoint(folder / "last.json")` gave, to go on from there; settings, vectors and
            vocabulary are then its own. On the CPU the run ends with the bits of one that never stopped.
        device, backend: where, and on which backend of `coalign.soft_align`.
        tensorboard: whether to write TensorBoard's files too.

    Raises:
        ValueError: resume is of other training pairs or has no state to go on from. ImportError: no TensorBoard.
    """

    def __init__(
        self,
        settings: Settings,
        training: Corpus,
        validation: Corpus | None,
        folder: Path,
        *,
        vectors: Tensor | None = None,
        vocabulary: Vocabulary | None = None,
        resume: Checkpoint | None = None,
        device: torch.device | str = "cpu",
        backend: str | None = None,
        tensorboard: bool = False,
    ) -> None:
        self.folder, self.device = folder, torch.device(device)
        self.settings = settings = settings if resume is None else resume.settings
        vocabulary = vocabulary or settings.vocabulary(training)
        self.vocabulary = vocabulary if resume is None else resume.vocabulary
        self.training = training
        self.batches = settings.batches(training, self.vocabulary, training=True)
        self.validation = None if validation is None else settings.batches(validation, self.vocabulary, training=False)
        torch.manual_seed(settings.seed)
        self.model = settings.model(len(self.vocabulary), len(training.label_names), vectors)
        self.model.backend = backend
        self.model.to(self.device)
        self.optimizer = settings.make_optimizer(self.model)
        self.epoch, self.batch, self.step, self.best = 0, 0, 0, -1.0
        self.history: list[dict[str, Any]] = []
        self._loss = torch.zeros((), dtype=torch.float64, device=self.device)
        self._right = torch.zeros((), dtype=torch.int64, device=self.device)
        self._pairs = 0
        if resume is not None:
            self._go_on_from(resume)
        folder.mkdir(parents=True, exist_ok=True)
        self._writer = _tensorboard(folder) if tensorboard else None

    def run(
        self, report: Callable[[Progress], None] = lambda progress: None, stop: Callable[[], bool] = lambda: False
    ) -> bool:
        """Train to the end of the last epoch. Whether it got there: False when stop() said so after some step.

        Raises:
            TrainingError: the loss is not finite. The state is in failed.json; on the CPU, that before the step.
        """
        while self.epoch < self.settings.epochs:
            start = time.perf_counter()
            self.model.train()
            for batch in self.batches.epoch(self.epoch, self.batch):
                self._train_on(batch)
                if self.device.type == "cpu" or self.step % _STEPS_UNSEEN == 0 or self.batch == len(self.batches):
                    report(self._progress())
                if stop() and self.batch < len(self.batches):
                    self._save(LAST)
                    return False
            self._end_epoch(time.perf_counter() - start)
        return True

    def _train_on(self, batch: LabelledPairs) -> None:
        pairs, labels, _ = batch.to(self.device)
        self.optimizer.zero_grad()
        with self._autocast():
            scores = self.model(pairs).float()
        loss = nn.functional.cross_entropy(scores, labels)
        if self.device.type == "cpu" or self.step % _STEPS_UNSEEN == 0:
            self._check(loss)
        loss.backward()
        self.optimizer.step()
        self._loss += loss.detach().double() * len(labels)
        self._right += (scores.detach().argmax(1) == labels).sum()
        self._pairs += len(labels)
        self.batch += 1
        self.step += 1

    def _check(self, loss: Tensor) -> None:
        if not math.isfinite(float(loss.detach())):
            self._save(FAILED)
            raise TrainingError(
                f"the loss of step {self.step + 1} (epoch {self.epoch + 1}) is {float(loss.detach())}; "
                f"the state is saved in {self.folder / FAILED}"
            )

    def _end_epoch(self, seconds: float) -> None:
        """Evaluate, note the epoch's numbers, and save."""
        reached = self._progress()
        numbers = {
            "epoch": self.epoch + 1,
            "step": self.step,
            "training_loss": reached.loss,
            "training_accuracy": reached.accuracy,
        }
        score = reached.accuracy
        if self.validation is not None:
            found = evaluate(
                self.model,
                self.validation.epoch(),
                self.training.label_names,
                device=self.device,
                autocast=self._autocast(),
            )
            numbers |= {"validation_loss": found.loss, "validation_accuracy": found.accuracy}
            score = found.accuracy
        numbers["seconds"] = round(seconds, 3)
        self.history.append(numbers)
        self.epoch, self.batch, self._pairs = self.epoch + 1, 0, 0
        self._loss.zero_()
        self._right.zero_()
        if score > self.best:
            self.best = score
            self._save(BEST)
        self._save(LAST)
        self._log(numbers)

    def _progress(self) -> Progress:
        pairs = max(self._pairs, 1)
        return Progress(self.epoch, self._pairs, float(self._loss) / pairs, int(self._right) / pairs)

    def _log(self, numbers: dict[str, Any]) -> None:
        # written anew from the whole history, so that a run that is resumed has no line twice
        text = io.StringIO()
        table = csv.DictWriter(text, list(dict.fromkeys(key for line in self.history for key in line)))
        table.writeheader()
        table.writerows(self.history)
        with replacing(self.folder / "log.csv") as unfinished:
            unfinished.write_text(text.getvalue())
        if self._writer is not None:
            for name, value in numbers.items():
                if name not in ("epoch", "step"):
                    self._writer.add_scalar(name, value, self.step)
            self._writer.flush()

    def _save(self, name: str) -> None:
        save_checkpoint(
            Checkpoint(
                self.settings,
                self.vocabulary,
                self.training.label_names,
                self.model.state_dict(),
                self.epoch,
                self.batch,
                self.step,
                {"loss": float(self._loss), "right": int(self._right), "pairs": self._pairs, **self._data()},
                self.history,
                self.best,
                None if name == BEST else self.optimizer.state_dict(),
                None if name == BEST else torch.get_rng_state(),
            ),
            self.folder / name,
        )

    def _data(self) -> dict[str, int]:
        """What tells the training pairs from others."""
        return {"of_pairs": len(self.training), "of_tokens": int(self.training.counts.sum())}

    def _go_on_from(self, saved: Checkpoint) -> None:
        if saved.optimizer is None or saved.generator is None:
            raise ValueError(f"there is no state to go on from: use {LAST}")
        if {name: saved.sums[name] for name in self._data()} != self._data():
            raise ValueError(
                f"the run was trained on {saved.sums['of_pairs']} pairs with {saved.sums['of_tokens']} tokens; "
                f"these are {len(self.training)} with {self._data()['of_tokens']}"
            )
        self.model.load_state_dict(saved.model)
        self.optimizer.load_state_dict(saved.optimizer)
        torch.set_rng_state(saved.generator)
        self.epoch, self.batch, self.step, self.best = saved.epoch, saved.batch, saved.step, saved.best
        self.history = saved.history
        self._loss += saved.sums["loss"]
        self._right += int(saved.sums["right"])
        self._pairs = int(saved.sums["pairs"])

    def _autocast(self) -> AbstractContextManager[object]:
        if self.settings.precision == "bfloat16":
            return torch.autocast(self.device.type, torch.bfloat16)
        return nullcontext()


def _tensorboard(folder: Path) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise ImportError('TensorBoard is not installed: pip install "coalign[tensorboard]"') from None
    return SummaryWriter(str(folder))
