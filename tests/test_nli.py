"""Reading pairs, the vocabulary and batches."""

import json
from pathlib import Path

import pytest
import torch
from coalign.model.nli import LABELS, DataError, Vocabulary, batches, read_snli
from coalign.model.nli.examples import example_pairs

SNLI = Path(__file__).parents[2] / "shared/data/snli_1.0/snli_1.0_dev.jsonl"


def line(**changes):
    fields = {"gold_label": "neutral", "sentence1": "A dog runs .", "sentence2": "It is Big ."}
    return json.dumps({name: value for name, value in (fields | changes).items() if value is not None})


def written(folder, *lines):
    path = folder / "pairs.jsonl"
    path.write_bytes(b"\n".join(text.encode() if isinstance(text, str) else text for text in lines) + b"\n")
    return path


def test_pairs_come_in_order_and_unlabelled_ones_are_counted(tmp_path):
    path = written(tmp_path, line(), line(gold_label="-"), line(gold_label="entailment", sentence2="x  y"))
    pairs, unlabelled = read_snli(path)
    assert unlabelled == 1
    assert [LABELS[pair.label] for pair in pairs] == ["neutral", "entailment"]
    assert pairs[0].premise == ["A", "dog", "runs", "."]
    assert pairs[1].hypothesis == ["x", "y"]
    assert read_snli(path, lower=True).pairs[0].hypothesis == ["it", "is", "big", "."]
    assert len(read_snli(path, limit=1).pairs) == 1
    with pytest.raises(ValueError, match=r"^limit must be 1 or more, not 0$"):
        read_snli(path, limit=0)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("{", "not JSON"),
        ("", "empty"),
        ("[1]", "expected a JSON object, not list"),
        (line(sentence2=None), "sentence2 is missing"),
        (line(sentence1=3), "sentence1 must be a string"),
        (line(gold_label="maybe"), "the label 'maybe' is none of entailment"),
        (b'{"gold_label": "\xff"}', "not UTF-8 at byte 16"),
    ],
)
def test_a_malformed_line_is_named(tmp_path, text, reason):
    path = written(tmp_path, line(), text, line())
    with pytest.raises(DataError, match="line 2") as caught:
        read_snli(path)
    assert str(path) in str(caught.value)
    assert reason in str(caught.value)


@pytest.mark.parametrize("lines", [[], [line(gold_label="-")]], ids=["empty", "unlabelled"])
def test_a_file_without_pairs_is_an_error(tmp_path, lines):
    path = tmp_path / "pairs.jsonl"
    path.write_text("\n".join(lines))
    with pytest.raises(DataError, match="holds no labelled pair"):
        read_snli(path)


@pytest.mark.skipif(not SNLI.exists(), reason="the SNLI development file is not beside this checkout")
def test_the_whole_development_set():
    pairs, unlabelled = read_snli(SNLI)
    assert (len(pairs), unlabelled) == (9842, 0)
    lengths = torch.tensor([(len(pair.premise), len(pair.hypothesis)) for pair in pairs])
    assert lengths.max(0).values.tolist() == [59, 55]


def test_vocabulary_follows_d2l():
    vocabulary = Vocabulary([["b", "a", "b"], ["c", "a", "b", "<pad>"]])
    assert vocabulary.tokens == ["<unk>", "<pad>", "b", "a", "c"]
    assert len(vocabulary) == 5
    assert vocabulary["b"] == 2
    assert vocabulary[["c", "nonesuch", "a"]] == [4, 0, 3]
    assert vocabulary.to_tokens([2, 0]) == ["b", "<unk>"]
    assert vocabulary.padding == 1
    assert "c" in vocabulary
    assert "c" not in Vocabulary([["a", "a", "c"]], min_freq=2)
    with pytest.raises(IndexError, match="between 0 and 4"):
        vocabulary.to_tokens([5])


@pytest.mark.parametrize("sentences", ["two dogs", ["two dogs"]])
def test_vocabulary_takes_no_texts(sentences):
    with pytest.raises(TypeError, match="must be lists of words, not texts as 'two dogs' is"):
        Vocabulary(sentences)


@pytest.mark.parametrize("batch_size", [1, 7, 60, 100])
def test_batches_hold_every_token_once(batch_size):
    pairs = example_pairs()
    vocabulary = Vocabulary([s for pair in pairs for s in (pair.premise, pair.hypothesis)])
    found = []
    for batch in batches(pairs, vocabulary, batch_size):
        assert batch.premises.shape[1] == batch.lengths[0].max()
        for i, label in enumerate(batch.labels.tolist()):
            sides = zip((batch.premises, batch.hypotheses), batch.lengths, strict=True)
            (premise, hypothesis) = (vocabulary.to_tokens(ids[i, : lengths[i]].tolist()) for ids, lengths in sides)
            found.append((premise, hypothesis, label))
        for ids, lengths in zip((batch.premises, batch.hypotheses), batch.lengths, strict=True):
            assert ((ids == vocabulary.padding).sum(1) == ids.shape[1] - lengths).all()
    assert found == [tuple(pair) for pair in pairs]


def test_a_batch_with_an_empty_sentence(tmp_path):
    pairs = read_snli(written(tmp_path, line(sentence1=""), line(sentence1="", sentence2=""))).pairs
    batch = next(batches(pairs, Vocabulary([pairs[0].hypothesis]), 2))
    assert batch.premises.shape == (2, 0)
    assert batch.lengths[1].tolist() == [4, 0]


def test_batch_size_must_be_positive():
    with pytest.raises(ValueError, match="batch_size must be 1 or more"):
        next(batches(example_pairs(), Vocabulary([]), 0))
