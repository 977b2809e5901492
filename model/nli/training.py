"""Training the model: epochs, evaluation, checkpoints, going on where a run stopped."""

from __future__ import annotations

import csv
import io
import math
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch
from torch import Tensor, nn

from ..atomic import check_writable, claimed, replacing
from .checkpoint import Checkpoint, save_checkpoint
from .corpus import Corpus
from .evaluation import evaluate
from .ranks import ALONE, Ranks
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
        ranks: this process among those that train together, all of them with the same arguments but for the device.
            Each takes its share of every batch; losses and gradients are those of one process with the whole
            batch, up to rounding, but for what dropout leaves out. Only the first writes.

    Raises:
        ValueError: resume is of other pairs or has no state to go on from; validation has other labels.
        OSError: the folder can't be written to. ImportError: no TensorBoard.
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
        ranks: Ranks = ALONE,
    ) -> None:
        self.ranks = ranks
        self.folder, self.device = Path(folder), torch.device(device)
        self.settings = settings = settings if resume is None else resume.settings
        vocabulary = vocabulary or settings.vocabulary(training)
        self.vocabulary = vocabulary if resume is None else resume.vocabulary
        if validation is not None and validation.label_names != training.label_names:
            raise ValueError(
                f"the validation pairs' labels, {', '.join(validation.label_names)}, must be the training pairs', "
                f"{', '.join(training.label_names)}, in the same order"
            )
        self.training, self._digest = training, training.digest()
        self._validated = "" if validation is None else validation.digest()
        self.batches = settings.batches(training, self.vocabulary, training=True)
        self.validation = None if validation is None else settings.batches(validation, self.vocabulary, training=False)
        torch.manual_seed(settings.seed)
        self.model = settings.model(len(self.vocabulary), len(training.label_names), vectors)
        self.model.backend = backend
        self.model.to(self.device)
        self.optimizer = settings.make_optimizer(self.model)
        self.epoch, self.batch, self.step, self.best = 0, 0, 0, -1.0
        self.history: list[dict[str, Any]] = []
        self._sums = torch.zeros(2, dtype=torch.float64, device=self.device)  # loss and right answers of all ranks
        self._pairs = 0
        if resume is not None:
            self._go_on_from(resume)
        self._parallel: nn.Module = self.model  # in run(): what passes its gradients to all ranks
        if ranks.first:
            self.folder.mkdir(parents=True, exist_ok=True)
            check_writable(self.folder / LAST)
        self._writer = _tensorboard(self.folder) if tensorboard and ranks.first else None

    def run(
        self, report: Callable[[Progress], None] = lambda progress: None, stop: Callable[[], bool] = lambda: False
    ) -> bool:
        """Train to the end of the last epoch. Whether it got there: False when stop() said so after some step.

        On a GPU, stop is asked after every fiftieth step and every epoch; several ranks stop together when one of them
        says so.

        Raises:
            OSError: a file could not be written; as BlockingIOError: another run is at work in the folder.
            OtherRankFailed: rank 0 met with such an error.
            TrainingError: the loss is not finite. The state is in failed.json; on the CPU, that before the step.
        """
        try:
            with ExitStack() as stack:
                with self.ranks.all_or_none():
                    if self.ranks.first:
                        stack.enter_context(claimed(self.folder))
                        if self.history:  # whose last line may be missing: it is written after last.json
                            self._write_table()
                self._parallel = self.ranks.parallel(self.model)
                return self._run(report, stop)
        finally:
            self._parallel = self.model  # see joined(): nothing may hold on to the process group after it

    def _run(self, report: Callable[[Progress], None], stop: Callable[[], bool]) -> bool:
        while self.epoch < self.settings.epochs:
            start = time.perf_counter()
            self.model.train()
            for rows in self.batches.rows(self.epoch, self.batch):
                self._train_on(rows)
                if not self._is_seen() and self.batch < len(self.batches):
                    continue
                report(self._progress())
                if self.batch < len(self.batches) and self.ranks.any(stop()):
                    self._save(LAST)
                    return False
            self._end_epoch(time.perf_counter() - start)
            if self.epoch < self.settings.epochs and self.ranks.any(stop()):
                return False
        return True

    def _is_seen(self) -> bool:
        """Whether to look at numbers after this many steps: on the CPU always; a GPU must be waited for."""
        return self.device.type == "cpu" or self.step % _STEPS_UNSEEN == 0

    def _train_on(self, rows: Tensor) -> None:
        pairs, labels, _ = self.batches.batch(self.ranks.share(rows)).to(self.device)
        torch.manual_seed(self._dropout_seed())
        self.optimizer.zero_grad()
        with self._autocast():
            scores = self._parallel(pairs).float()
        loss = nn.functional.cross_entropy(scores, labels, reduction="sum")
        found = torch.stack([loss.detach().double(), (scores.argmax(1) == labels).sum(dtype=torch.float64)])
        self.ranks.total(found)
        if self._is_seen():
            self._check(float(found[0]) / len(rows))
        # the mean over the whole batch, whatever its shares; ranks' gradients are averaged, not summed
        (loss * (self.ranks.world_size / len(rows))).backward()
        self.optimizer.step()
        self._sums += found
        self._pairs += len(rows)
        self.batch += 1
        self.step += 1

    def _dropout_seed(self) -> int:
        """Another for every step and rank, so that a run that stopped goes on with the same numbers."""
        entropy = (self.settings.seed, self.step, self.ranks.rank)
        return int(np.random.SeedSequence(entropy).generate_state(1, np.uint64)[0] >> 1)

    def _check(self, loss: float) -> None:
        if not math.isfinite(loss):
            self._fail(f"the loss of step {self.step + 1} (epoch {self.epoch + 1}) is {loss}")

    def _check_epoch(self, numbers: dict[str, float]) -> None:
        """That nothing is saved to go on from, from which nobody could."""
        fine = all(map(math.isfinite, numbers.values())) and all(p.isfinite().all() for p in self.model.parameters())
        if self.ranks.any(not fine):
            self._fail(f"after step {self.step} (epoch {self.epoch + 1}) a loss or a parameter is not finite")

    def _fail(self, why: str) -> NoReturn:
        self._save(FAILED)
        raise TrainingError(f"{why}; the state is saved in {self.folder / FAILED}")

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
                map(self.validation.batch, self.ranks.every(self.validation.rows())),
                self.training.label_names,
                device=self.device,
                autocast=self._autocast(),
                ranks=self.ranks,
            )
            numbers |= {"validation_loss": found.loss, "validation_accuracy": found.accuracy}
            score = found.accuracy
        self._check_epoch(numbers)
        numbers["seconds"] = round(seconds, 3)
        self.history.append(numbers)
        self.epoch, self.batch, self._pairs = self.epoch + 1, 0, 0
        self._sums.zero_()
        if score > self.best:
            self.best = score
            self._save(BEST)
        self._save(LAST)
        self._log(numbers)

    def _progress(self) -> Progress:
        pairs = max(self._pairs, 1)
        loss, right = self._sums.tolist()
        return Progress(self.epoch, self._pairs, loss / pairs, right / pairs)

    def _log(self, numbers: dict[str, Any]) -> None:
        with self.ranks.all_or_none():
            if self.ranks.first:
                self._write_log(numbers)

    def _write_table(self) -> None:
        # written anew from the whole history, so that a run that is resumed has no line twice
        text = io.StringIO()
        table = csv.DictWriter(text, list(dict.fromkeys(key for line in self.history for key in line)))
        table.writeheader()
        table.writerows(self.history)
        with replacing(self.folder / "log.csv") as unfinished:
            unfinished.write_text(text.getvalue())

    def _write_log(self, numbers: dict[str, Any]) -> None:
        self._write_table()
        if self._writer is not None:
            for name, value in numbers.items():
                if name not in ("epoch", "step"):
                    self._writer.add_scalar(name, value, self.step)
            self._writer.flush()

    def _save(self, name: str) -> None:
        with self.ranks.all_or_none():  # a rank that is done too early would have the others ended while one writes
            if self.ranks.first:
                save_checkpoint(self._checkpoint(name), self.folder / name)

    def _checkpoint(self, name: str) -> Checkpoint:
        loss, right = self._sums.tolist()
        return Checkpoint(
            self.settings,
            self.vocabulary,
            self.training.label_names,
            self.model.state_dict(),
            self.epoch,
            self.batch,
            self.step,
            {"loss": loss, "right": right, "pairs": self._pairs, "of_pairs": len(self.training)},
            self.history,
            self.best,
            None if name == BEST else self.optimizer.state_dict(),
            self._digest,
            self._validated,
        )

    def _go_on_from(self, saved: Checkpoint) -> None:
        if saved.optimizer is None:
            raise ValueError(f"there is no state to go on from: use {LAST}")
        if saved.digest not in ("", self._digest):
            raise ValueError(
                f"the run was trained on {saved.sums['of_pairs']} pairs; these {len(self.training)} are others, or in "
                "another order, or labelled otherwise"
            )
        was_validated = bool(saved.history) and "validation_accuracy" in saved.history[-1]
        if saved.validated not in ("", self._validated) or (was_validated and self.validation is None):
            raise ValueError(
                f"the run was evaluated on other validation pairs, by which {BEST} was chosen: give the same"
            )
        saved.load_into(self.model)
        self.optimizer.load_state_dict(saved.optimizer)
        self.epoch, self.batch, self.step, self.best = saved.epoch, saved.batch, saved.step, saved.best
        self.history = saved.history
        if not was_validated and self.validation is not None:
            self.best = -1.0  # of another kind than the accuracies that follow
        self._sums.copy_(torch.tensor([saved.sums["loss"], saved.sums["right"]], dtype=torch.float64))
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
