"""The model as the Hugging Face Hub has it: a folder there and back, and what a missing package says."""

from __future__ import annotations

import builtins
import importlib
import json
import sys

import pytest
import torch
from coalign.model.nli import LABELS, Checkpoint, Predictor, Settings, Vocabulary
from safetensors.torch import load_file, save_file

from coalign import DecomposableAttention


@pytest.fixture
def pretrained():
    pytest.importorskip("huggingface_hub", reason="huggingface_hub is not installed")
    from coalign.model.nli import pretrained

    return pretrained.PretrainedDecomposableAttention


IDS = torch.tensor([[2, 3, 0], [4, 4, 5]]), torch.tensor([[5, 2], [3, 1]])


def trained(**settings):
    settings = Settings(lower=True, embed_size=6, num_hiddens=8, **settings)
    vocabulary = Vocabulary([["two", "dogs", "run"], ["animals", "are", "outside"]])
    torch.manual_seed(0)
    return Checkpoint(settings, vocabulary, LABELS, settings.model(len(vocabulary)).state_dict())


@pytest.mark.parametrize(
    "options", [{}, {"projection_size": 4, "intra_attention": True, "padding_idx": 1, "num_classes": 2, "dropout": 0.0}]
)
def test_there_and_back(pretrained, tmp_path, options):
    torch.manual_seed(0)
    model = pretrained(20, 6, num_hiddens=8, **options).eval()
    model.save_pretrained(tmp_path)
    again = pretrained.from_pretrained(tmp_path)
    assert not again.training
    assert torch.equal(again(IDS), model(IDS))
    names = DecomposableAttention.from_sizes(20, 6, 8, **options).state_dict()
    assert load_file(tmp_path / "model.safetensors").keys() == names.keys()
    config = json.loads((tmp_path / "config.json").read_text())
    assert {"vocab_size": 20, "embed_size": 6, "num_hiddens": 8, **options}.items() <= config.items()
    assert "coalign" in (tmp_path / "README.md").read_text()


def test_with_its_vocabulary(pretrained, tmp_path):
    checkpoint = trained(projection_size=4, max_tokens=5)
    pretrained.from_checkpoint(checkpoint).save_pretrained(tmp_path)
    again = pretrained.from_pretrained(tmp_path)
    texts = ["Two dogs run", "a cat"], ["Animals ARE outside", "dogs"]
    found, expected = again.predictor()(*texts), Predictor(checkpoint)(*texts)
    assert found.labels == expected.labels
    assert (found.probabilities == expected.probabilities).all()
    assert again.checkpoint().settings == checkpoint.settings


def test_weights_must_fit(pretrained, tmp_path):
    pretrained(20, 6, 8).save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    tensors = load_file(file)
    tensors.pop("compare.g.1.weight")
    save_file(tensors, file)
    with pytest.raises(RuntimeError, match=r"compare\.g\.1\.weight"):
        pretrained.from_pretrained(tmp_path)


def test_refused(pretrained):
    with pytest.raises(ValueError, match="together"):
        pretrained(20, words=["a"] * 20)
    with pytest.raises(ValueError, match="5 words and 3 labels for 20 ids"):
        pretrained(20, words=["a"] * 5, settings={}, labels=LABELS)
    with pytest.raises(ValueError, match="takes ids, not texts"):
        pretrained(20).predictor()


def test_without_the_package(monkeypatch):
    real = builtins.__import__

    def refuse(name, *arguments, **options):
        if name.startswith("huggingface_hub"):
            raise ImportError(name)
        return real(name, *arguments, **options)

    monkeypatch.setattr(builtins, "__import__", refuse)
    monkeypatch.delitem(sys.modules, "coalign.model.nli.pretrained", raising=False)
    with pytest.raises(ImportError, match=r'pip install "coalign\[hub\]"'):
        importlib.import_module("coalign.model.nli.pretrained")
