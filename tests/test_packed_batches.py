"""Packed batches of a corpus: their order, their ids, cut sentences."""

from itertools import pairwise

import pytest
import torch
from coalign.model.nli import PackedBatches, Pair, Vocabulary, load_corpus


def written(folder, *lines):
    path = folder / "x.tsv"
    path.write_text("\n".join(["premise\thypothesis\tlabel", *lines]))
    return path


def texts_of(ids, offsets, to_words):
    return [to_words(ids[i:j].tolist()) for i, j in pairwise(offsets)]


def pairs_of(corpus):
    """A corpus as lists of words."""
    sides = ((corpus.words_a, corpus.offsets_a), (corpus.words_b, corpus.offsets_b))
    texts = (texts_of(*side, lambda words: [corpus.words[w] for w in words]) for side in sides)
    return list(map(Pair, *texts, corpus.labels.tolist()))


def as_pairs(batch, vocabulary):
    sides = ((batch.pairs.ids_a, batch.pairs.offsets_a), (batch.pairs.ids_b, batch.pairs.offsets_b))
    texts = (texts_of(*side, vocabulary.to_tokens) for side in sides)
    return list(map(Pair, *texts, batch.labels.tolist()))


def corpus_of(folder, pairs=23):
    """Every word tells its pair, its side and its place; lengths differ."""
    lines = []
    for p in range(pairs):
        a, b = (" ".join(f"{side}{p}.{i}" for i in range(n)) for side, n in (("a", p % 5), ("b", 1 + p % 3)))
        lines.append(f"{a}\t{b}\t{('entailment', 'contradiction', 'neutral')[p % 3]}")
    return load_corpus(written(folder, *lines))


@pytest.mark.parametrize("batch_size", [1, 5, 23, 100])
@pytest.mark.parametrize("options", [{"shuffle": False}, {}, {"bucketed": True}], ids=str)
def test_batches_hold_every_pair_once(tmp_path, batch_size, options):
    corpus = corpus_of(tmp_path)
    vocabulary = corpus.vocabulary(1)
    batches = PackedBatches(corpus, vocabulary, batch_size, **options)
    found = [*batches.epoch()]
    assert len(found) == len(batches) == -(-23 // batch_size)
    seen = [pair for batch in found for pair in as_pairs(batch, vocabulary)]
    rows = torch.cat([batch.rows for batch in found])
    expected = pairs_of(corpus)
    assert seen == [expected[row] for row in rows]
    assert sorted(rows.tolist()) == [*range(23)]
    if options == {"shuffle": False}:
        assert seen == expected


@pytest.mark.parametrize("bucketed", [False, True])
def test_order_is_the_seeds_and_the_epochs(tmp_path, bucketed):
    corpus = corpus_of(tmp_path)

    def rows(seed, epoch, start=0):
        batches = PackedBatches(corpus, corpus.vocabulary(1), 5, seed=seed, bucketed=bucketed)
        return [batch.rows.tolist() for batch in batches.epoch(epoch, start)]

    assert rows(1, 0) == rows(1, 0)
    assert rows(1, 0) != rows(2, 0)
    assert rows(1, 0) != rows(1, 1)
    assert rows(1, 2, start=3) == rows(1, 2)[3:]


def test_buckets_hold_pairs_of_like_length(tmp_path):
    corpus = corpus_of(tmp_path, 600)
    lengths = corpus.offsets_a.diff() + corpus.offsets_b.diff()

    def spread(bucketed):
        batches = PackedBatches(corpus, corpus.vocabulary(1), 20, bucketed=bucketed)
        return sum(int(lengths[b.rows].max() - lengths[b.rows].min()) for b in batches.epoch())

    assert spread(True) < 0.2 * spread(False)


def test_cutting_and_a_first_token(tmp_path):
    corpus = corpus_of(tmp_path)
    vocabulary = corpus.vocabulary(1)
    for limit, first in ((2, None), (None, 1), (2, 1)):
        batches = PackedBatches(corpus, vocabulary, 23, shuffle=False, max_tokens=limit, first_token=first)
        expected = [
            Pair(*(["<pad>"] * (first is not None) + text[:limit] for text in pair[:2]), pair.label)
            for pair in pairs_of(corpus)
        ]
        assert as_pairs(next(batches.epoch()), vocabulary) == expected


def test_rare_words_and_anothers_vocabulary(tmp_path):
    path = written(tmp_path, *["a a b\tc a\tneutral"] * 2, "d\tb\tneutral")
    corpus = load_corpus(path)
    assert corpus.vocabulary().tokens == ["<unk>", "<pad>", "a"]  # min_freq is d2l's 5
    batch = next(PackedBatches(corpus, Vocabulary([["c", "zz"]]), 9, shuffle=False).epoch())
    assert batch.pairs.ids_b.tolist() == [2, 0, 2, 0, 0]


def test_words_spelled_like_the_reserved_ones(tmp_path):
    path = written(tmp_path, "<pad> <unk>\t<pad>\tneutral")
    corpus = load_corpus(path)
    batch = next(PackedBatches(corpus, corpus.vocabulary(1), 1).epoch())
    assert batch.pairs.ids_a.tolist() == [1, 0]
    assert len(batch.pairs.ids_b) == 1


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"batch_size": 0}, ValueError, "batch_size must be 1 or more"),
        ({"batch_size": 2, "max_tokens": 0}, ValueError, "max_tokens must be 1 or more"),
        ({"batch_size": 2, "bucketed": True, "shuffle": False}, ValueError, "they need shuffle=True"),
        ({"batch_size": 2.5}, TypeError, "batch_size must be an int, not float"),
        ({"batch_size": 2, "max_tokens": 9.0}, TypeError, "max_tokens must be an int, not float"),
    ],
)
def test_bad_batch_options(tmp_path, options, error, message):
    corpus = corpus_of(tmp_path)
    with pytest.raises(error, match=message):
        PackedBatches(corpus, corpus.vocabulary(), **options)


def test_another_default_device(tmp_path):
    corpus = corpus_of(tmp_path)
    vocabulary = corpus.vocabulary()
    expected = list(PackedBatches(corpus, vocabulary, 5, bucketed=True, first_token=1).epoch())
    with torch.device("meta"):
        found = list(PackedBatches(corpus, vocabulary, 5, bucketed=True, first_token=1).epoch())
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one.pairs.ids_a, other.pairs.ids_a)
        assert torch.equal(one.labels, other.labels)
    with torch.device("meta"):
        assert torch.equal(
            next(PackedBatches(corpus, vocabulary, 5, shuffle=False).rows()), torch.arange(5, device="cpu")
        )
