"""The model on the Hugging Face Hub: from_pretrained, save_pretrained, push_to_hub. Needs the extra coalign[hub]."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

try:
    from huggingface_hub import PyTorchModelHubMixin
except ImportError:
    raise ImportError('the model on the Hub needs the package huggingface_hub: pip install "coalign[hub]"') from None

from ..decomposable_attention import DecomposableAttention
from .checkpoint import Checkpoint
from .prediction import Predictor
from .settings import Settings
from .vocabulary import Vocabulary


class PretrainedDecomposableAttention(
    DecomposableAttention,
    PyTorchModelHubMixin,
    library_name="coalign",
    pipeline_tag="text-classification",
    tags=["natural-language-inference"],
    paper_url="https://arxiv.org/abs/1606.01933",
):
    """`DecomposableAttention` that huggingface_hub can save, load and share, with its vocabulary where it has one.

    `save_pretrained(folder)` writes model.safetensors, of the state dict's names, and config.json, of this
    constructor's arguments; `from_pretrained(folder or "user/name")` reads them, `push_to_hub("user/name")` shares
    them. Weights must fit exactly, unlike huggingface_hub's default, which leaves at random what is missing.

    Args:
        vocab_size and those up to dropout: as of `DecomposableAttention.from_sizes`.
        words: the vocabulary, a word for each id. settings: `Settings` as a dict. labels: the classes' names. All
            three or none; a `Predictor` needs them.

    Raises:
        ValueError: sizes, words, settings or labels that do not fit one another.
    """

    def __init__(
        self,
        vocab_size: int,
        embed_size: int = 100,
        num_hiddens: int = 200,
        *,
        num_classes: int = 3,
        projection_size: int | None = None,
        intra_attention: bool = False,
        padding_idx: int | None = None,
        dropout: float = 0.2,
        words: Sequence[str] | None = None,
        settings: dict[str, Any] | None = None,
        labels: Sequence[str] | None = None,
    ) -> None:
        width = (projection_size or embed_size) * (2 if intra_attention else 1)
        super().__init__(
            range(vocab_size),
            embed_size,
            num_hiddens,
            *(width, 2 * width, 2 * num_hiddens),
            num_classes=num_classes,
            projection_size=projection_size,
            intra_attention=intra_attention,
            padding_idx=padding_idx,
            dropout=dropout,
        )
        if len({value is None for value in (words, settings, labels)}) != 1:
            raise ValueError("give words, settings and labels together, or none of them")
        self.words, self.settings, self.labels = words, settings, labels
        if words is not None and labels is not None and (len(words) != vocab_size or len(labels) != num_classes):
            raise ValueError(
                f"there are {len(words)} words and {len(labels)} labels for {vocab_size} ids and {num_classes} classes"
            )

    @classmethod
    def from_checkpoint(cls, checkpoint: Checkpoint) -> PretrainedDecomposableAttention:
        """The model of a training run, `load_checkpoint("run")`, with its vocabulary; in evaluation mode."""
        settings = checkpoint.settings
        made = cls(
            vocab_size=len(checkpoint.vocabulary),
            embed_size=settings.embed_size,
            num_hiddens=settings.num_hiddens,
            num_classes=len(checkpoint.labels),
            projection_size=settings.projection_size or None,
            intra_attention=settings.intra_attention,
            padding_idx=1,
            dropout=settings.dropout,
            words=list(checkpoint.vocabulary.tokens),
            settings=asdict(settings),
            labels=list(checkpoint.labels),
        )
        made.load_state_dict(checkpoint.model)
        return made.eval()

    def checkpoint(self) -> Checkpoint:
        """The model as training runs keep it, its tensors shared.

        Raises:
            ValueError: the model has no vocabulary, settings and labels.
        """
        if self.words is None or self.settings is None or self.labels is None:
            raise ValueError("this model came without words, settings and labels: it takes ids, not texts")
        return Checkpoint(
            Settings(**self.settings), Vocabulary.from_tokens(self.words), tuple(self.labels), self.state_dict()
        )

    def predictor(self, **options: Any) -> Predictor:
        """What takes texts: a `Predictor`, with its options. Errors as of `checkpoint`."""
        return Predictor(self.checkpoint(), **options)

    @classmethod
    def _from_pretrained(cls, *, strict: bool = True, **options: Any) -> Any:
        return super()._from_pretrained(strict=strict, **options)
