"""Predicting: d2l's function, and the predictor that reads texts as its checkpoint's settings say."""

import json
import pickle
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from coalign.model.nli import (
    LABELS,
    Checkpoint,
    DataError,
    PairReader,
    Predictor,
    Settings,
    Vocabulary,
    load_checkpoint,
    load_corpus,
    predict_snli,
    save_checkpoint,
)
from coalign.model.nli.examples import example_pairs

SMALL = Settings(embed_size=8, num_hiddens=12, min_freq=1)
TEXTS = [(" ".join(pair.premise), " ".join(pair.hypothesis)) for pair in example_pairs()]
VOCABULARY = Vocabulary([s for pair in example_pairs() for s in (pair.premise, pair.hypothesis)], min_freq=2)


def made(settings=SMALL, labels=LABELS, seed=0):
    """A checkpoint of random parameters, large enough for the answers to differ."""
    torch.manual_seed(seed)
    vocabulary = Vocabulary.from_tokens([*VOCABULARY.tokens, "<null>"]) if settings.null_token else VOCABULARY
    model = settings.model(len(vocabulary), len(labels))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(2.5)
    return Checkpoint(settings, vocabulary, labels, model.state_dict())


@pytest.fixture(scope="module")
def checkpoint():
    return made()


@pytest.mark.parametrize("frozen", [False, True])
def test_predict_snli_is_the_models_own_answer(checkpoint, frozen):
    model = checkpoint.build()
    expected = [
        LABELS[int(model(tuple(torch.tensor([VOCABULARY[text.split()]]) for text in pair)).argmax())] for pair in TEXTS
    ]
    assert len({*expected}) > 1
    model = model.freeze() if frozen else model.train()
    found = [predict_snli(model, VOCABULARY, *(text.split() for text in pair)) for pair in TEXTS]
    assert found == expected
    assert model.training


def test_predict_snli_leaves_every_layer_in_its_mode(checkpoint):
    class OfAnotherModel:
        def __getitem__(self, tokens):
            return [10**6] * len(tokens)

    model = checkpoint.build().train()
    model.attend.eval()
    modes = [layer.training for layer in model.modules()]
    predict_snli(model, VOCABULARY, ["a"], ["a"])
    assert [layer.training for layer in model.modules()] == modes
    with pytest.raises(IndexError):
        predict_snli(model, OfAnotherModel(), ["a"], ["a"])
    assert [layer.training for layer in model.modules()] == modes


@pytest.mark.parametrize("changes", [{}, {"max_tokens": 3}], ids=str)
def test_null_must_be_a_word(changes):
    """It would be <unk> otherwise, as every rare word is."""
    settings = replace(SMALL, null_token=True, **changes)
    with pytest.raises(ValueError, match="null_token needs a vocabulary with <null>"):
        PairReader(settings, VOCABULARY)
    with pytest.raises(ValueError, match="null_token needs a vocabulary with <null>"):
        settings.batches(None, VOCABULARY, training=True)


def test_predict_snli_takes_other_vocabularies_and_sentences_without_words(checkpoint):
    class Book:
        def __getitem__(self, tokens):
            return [self[t] for t in tokens] if isinstance(tokens, (list, tuple)) else VOCABULARY[tokens]

    words = [text.split() for text in TEXTS[0]]
    model = checkpoint.build()
    assert predict_snli(model, Book(), *words) == predict_snli(model, VOCABULARY, *words)
    assert predict_snli(model, VOCABULARY, [], words[1]) in LABELS
    assert predict_snli(model, VOCABULARY, [], []) in LABELS
    with pytest.raises(TypeError, match="the hypothesis must be a list of words, not 'a dog'"):
        predict_snli(model, VOCABULARY, words[0], "a dog")


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"lower": True},
        {"tokens": "words"},
        {"max_tokens": 4},
        {"null_token": True, "max_tokens": 0},
        {"null_token": True, "max_tokens": 3, "projection_size": 6, "lower": True},
        {"intra_attention": True, "null_token": True},
    ],
    ids=str,
)
def test_a_predictor_reads_as_the_settings_say(tmp_path, changes):
    """As the training pipeline reads the same texts from a file, and scores them with the model that is not frozen."""
    saved = made(replace(SMALL, **changes))
    texts = [(a.title() + "!", b) for a, b in TEXTS]
    rows = ({"premise": a, "hypothesis": b, "label": "neutral"} for a, b in texts)
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    corpus = load_corpus(tmp_path / "pairs.jsonl", saved.settings.reading())
    batch = next(saved.settings.batches(corpus, saved.vocabulary, training=False).epoch()).pairs
    expected = saved.build()(batch).softmax(1).detach()
    predictor = Predictor(saved)
    own = predictor.reader.batch(*zip(*texts, strict=True))
    assert torch.equal(own.ids_a, batch.ids_a)
    assert torch.equal(own.offsets_b, batch.offsets_b)
    found = predictor(*zip(*texts, strict=True))
    torch.testing.assert_close(torch.from_numpy(found.probabilities), expected)
    assert found.labels == [LABELS[i] for i in expected.argmax(1)]
    again = pickle.loads(pickle.dumps(predictor))(*zip(*texts, strict=True))
    assert np.array_equal(again.probabilities, found.probabilities)


@pytest.mark.parametrize("changes", [{}, {"null_token": True, "max_tokens": 2, "lower": True}], ids=str)
def test_a_text_that_comes_again_is_read_once(monkeypatch, changes):
    """One premise has several hypotheses, one query many candidates."""
    saved, read = made(replace(SMALL, **changes)), []
    reader = PairReader(saved.settings, saved.vocabulary)
    premises = ["a dog runs", "", "A cat", "a dog runs", "", "", "a dog"]
    hypotheses = ["a", "b", "c", "d", "a cat sleeps", "a", ""]
    expected = [[[*reader.vocabulary[reader.words(text)]] for text in side] for side in (premises, hypotheses)]
    tokens = reader._tokens
    monkeypatch.setattr(reader, "_tokens", lambda text: read.append(text) or tokens(text))
    batch = reader.batch(premises, hypotheses)
    assert read == ["a dog runs", "", "A cat", "a dog", "a", "b", "c", "d", "a cat sleeps", ""]
    for ids, lengths, offsets, sentences in (
        (batch.ids_a, batch.lengths_a, batch.offsets_a, expected[0]),
        (batch.ids_b, batch.lengths_b, batch.offsets_b, expected[1]),
    ):
        assert ids.tolist() == [i for sentence in sentences for i in sentence]
        assert lengths.tolist() == [len(sentence) for sentence in sentences]
        assert offsets.tolist() == [sum(map(len, sentences[:k])) for k in range(8)]


def test_labels_are_the_checkpoints(checkpoint):
    found = Predictor(made(labels=("no", "yes")))(["a dog"], ["a cat"])
    assert found.labels[0] in ("no", "yes")
    assert found.probabilities.shape == (1, 2)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (["no", "yes"], "it names 2 labels, but best-0.safetensors holds a model of 3 classes"),
        (["no", "yes", "no"], "the label 'no' is named twice"),
        ("abc", "the labels must be a list of names, not 'abc'"),
        (["a", "b", 3], "the labels must be a list of names"),
    ],
)
def test_labels_that_are_not_the_models_are_named_with_the_file(tmp_path, labels, message):
    path = tmp_path / "best.json"
    save_checkpoint(made(), path)
    path.write_text(json.dumps(json.loads(path.read_text()) | {"labels": labels}))
    with pytest.raises(DataError, match=re.escape(f"{path} is no checkpoint of this program: {message}")):
        load_checkpoint(path)


def test_no_pairs_sentences_without_words_and_other_sequences(checkpoint):
    predictor = Predictor(checkpoint)
    assert predictor([], []).labels == []
    assert predictor([], []).probabilities.shape == (0, 3)
    plain = predictor(["", "two dogs", ""], ["a cat", "", " "]).probabilities
    torch.testing.assert_close(torch.from_numpy(plain.sum(1)), torch.ones(3))
    arrays = predictor(np.array(["", "two dogs", ""]), np.array(["a cat", "", " "], dtype=object)).probabilities
    assert np.array_equal(plain, arrays)


@pytest.mark.parametrize(
    ("premises", "hypotheses", "error", "message"),
    [
        (["a", None], ["b", "c"], TypeError, r"premises\[1\] must be a text, not NoneType"),
        (["a"], [float("nan")], TypeError, r"hypotheses\[0\] must be a text, not float"),
        ("two words", ["a"], TypeError, "premises must be a sequence of texts, not one text"),
        (["a", "b"], ["c"], ValueError, "there are 2 premises, but 1 hypotheses"),
    ],
)
def test_bad_texts(checkpoint, premises, hypotheses, error, message):
    with pytest.raises(error, match=message):
        Predictor(checkpoint)(premises, hypotheses)


def test_scores_that_are_not_finite(checkpoint):
    broken = made()
    broken.model["aggregate.linear.bias"][0] = torch.nan
    with pytest.raises(ValueError, match="scores are not finite"):
        Predictor(broken)(["a"], ["b"])
    with pytest.raises(ValueError, match=r"not in torch\.float16"):
        Predictor(checkpoint, dtype=torch.float16)
    with pytest.raises(ValueError, match=r"not frozen: it has no torch\.bfloat16"):
        Predictor(made(replace(SMALL, intra_attention=True)), dtype=torch.bfloat16)


UNPICKLE = """
import pickle, sys
predictor, texts = pickle.load(sys.stdin.buffer)
pickle.dump(predictor(*texts), sys.stdout.buffer)
"""


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_predictor_is_pickled_into_another_process(tmp_path, dtype):
    save_checkpoint(made(replace(SMALL, lower=True)), tmp_path / "best.json")
    predictor = Predictor.load(tmp_path, dtype=dtype)
    texts = [list(side) for side in zip(*TEXTS, strict=True)]
    here = predictor(*texts)
    given = pickle.dumps((predictor, texts))
    child = subprocess.run([sys.executable, "-c", UNPICKLE], input=given, capture_output=True, check=False)
    assert child.returncode == 0, child.stderr.decode()
    there = pickle.loads(child.stdout)
    assert there.labels == here.labels
    assert np.array_equal(there.probabilities, here.probabilities)


def test_the_recipe_for_spark():
    """docs/prediction.md's function, on a stand-in for a pandas frame. Its page's other code runs in test_readme."""
    page = (Path(__file__).parents[1] / "docs/prediction.md").read_text()
    names = {}
    for block in re.findall(r"```python\n(.*?)```", page, re.DOTALL):
        exec(block, names)

    class Frame(dict):
        def assign(self, **columns):
            return Frame(self, **columns)

    premises, hypotheses = zip(*TEXTS, strict=True)
    frames = [Frame(premise=premises[:9], hypothesis=hypotheses[:9]), Frame(premise=(), hypothesis=())]
    found = list(names["classify"](iter(frames)))
    labels, probabilities = names["predictor"](premises[:9], hypotheses[:9])
    assert found[0]["label"] == labels
    assert np.array_equal(found[0]["probability"], probabilities.max(1))
    assert [*found[0]] == ["premise", "hypothesis", "label", "probability"]
    assert found[1]["label"] == []


def test_a_predictor_of_a_path_is_loaded():
    with pytest.raises(TypeError, match=r"made of a Checkpoint, not str; see Predictor\.load"):
        Predictor("run")
