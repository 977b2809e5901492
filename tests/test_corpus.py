"""Files of pairs: what is read from each format, hostile ones, and the tokenised cache."""

import json
import os
import signal
import subprocess
import sys
import types
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from coalign.model.atomic import replacing
from coalign.model.nli import (
    Columns,
    DataError,
    PackedBatches,
    Pair,
    Reading,
    load_corpus,
    read_rows,
    read_snli,
    tokenizer,
)

SNLI = Path(__file__).parents[2] / "shared/data/snli_1.0/snli_1.0_dev.jsonl"
# lines of SNLI's official .txt, with its columns
HEADER = (
    "gold_label\tsentence1_binary_parse\tsentence2_binary_parse\tsentence1_parse\tsentence2_parse\tsentence1\t"
    "sentence2\tcaptionID\tpairID\tlabel1\tlabel2\tlabel3\tlabel4\tlabel5"
)
OFFICIAL = [
    ("neutral", "( ( Two women ) ( hug . ) )", "( ( The sisters ) ( hug . ) )", "Two women hug.", "The sisters hug."),
    ("-", "( x y )", "( z . )", "x y", "z."),
    ("entailment", '( It ( \'s ( " fine " ) ) )', "( ok . )", 'It\'s "fine"', "ok."),
]
OFFICIAL_PAIRS = [
    Pair(["Two", "women", "hug", "."], ["The", "sisters", "hug", "."], 2),
    Pair(["It", "'s", '"', "fine", '"'], ["ok", "."], 0),
]


def official_txt(folder):
    path = folder / "snli_1.0_dev.txt"
    rows = (
        "\t".join([*r[:3], "(ROOT)", "(ROOT)", *r[3:], "1.jpg#0", "1.jpg#0n", r[0], "", "", "", ""]) for r in OFFICIAL
    )
    path.write_text("\n".join([HEADER, *rows]) + "\n")
    return path


def official_jsonl(folder):
    path = folder / "snli_1.0_dev.jsonl"
    names = ("gold_label", "sentence1_binary_parse", "sentence2_binary_parse", "sentence1", "sentence2")
    path.write_text("".join(json.dumps(dict(zip(names, r, strict=True))) + "\n" for r in OFFICIAL))
    return path


def file(folder, name, *lines):
    path = folder / name
    path.write_bytes(b"".join((line.encode() if isinstance(line, str) else line) + b"\n" for line in lines))
    return path


def pairs_of(corpus):
    """A corpus as lists of words."""
    found = []
    for p in range(len(corpus)):
        sides = ((corpus.words_a, corpus.offsets_a), (corpus.words_b, corpus.offsets_b))
        texts = ([corpus.words[w] for w in words[o[p] : o[p + 1]].tolist()] for words, o in sides)
        found.append(Pair(*texts, int(corpus.labels[p])))
    return found


@pytest.mark.parametrize("write", [official_txt, official_jsonl])
def test_snlis_official_files(tmp_path, write):
    corpus = load_corpus(write(tmp_path))
    assert pairs_of(corpus) == OFFICIAL_PAIRS
    assert corpus.unlabelled == 1
    assert read_snli(write(tmp_path)) == (OFFICIAL_PAIRS, 1)


@pytest.mark.parametrize(
    ("name", "lines"),
    [
        ("x.csv", ["label,premise,hypothesis", 'neutral,"A, ""b""\nc",d', ",e,f", "entailment,,g"]),
        ("x.tsv", ["premise\thypothesis\tlabel", 'A, "b" c\td\tneutral', "e\tf\t", "\tg\tentailment"]),
        ("x.ndjson", ['{"premise": "A, \\"b\\" c", "hypothesis": "d", "label": "neutral"}',
                      '{"premise": "e", "hypothesis": "f", "label": null}',
                      '{"premise": "", "hypothesis": "g", "label": "entailment"}']),
    ],
)  # fmt: skip
def test_other_formats(tmp_path, name, lines):
    corpus = load_corpus(file(tmp_path, name, *lines))
    assert pairs_of(corpus) == [Pair(["A,", '"b"', "c"], ["d"], 2), Pair([], ["g"], 0)]
    assert corpus.unlabelled == 1


@pytest.mark.parametrize(
    ("name", "lines"),
    [
        ("x.csv", ["premise,hypothesis,label", '"a\n\nb",c,neutral', "", " \r"]),
        ("x.tsv", ["premise\thypothesis\tlabel", "a b\tc\tneutral", "\t"]),
        ("x.jsonl", ['{"premise": "a b", "hypothesis": "c", "label": "neutral"}', "", ""]),
    ],
)
def test_blank_lines_at_the_end_are_no_pairs(tmp_path, name, lines):
    assert pairs_of(load_corpus(file(tmp_path, name, *lines))) == [Pair(["a", "b"], ["c"], 2)]


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ((), "1 to 256 labels, not 0"),
        (tuple(map(str, range(257))), "1 to 256 labels, not 257"),
        (("yes", "no", "yes"), "the label 'yes' is named twice"),
    ],
)
def test_labels_that_are_none(labels, message):
    with pytest.raises(ValueError, match=message):
        Reading(labels=labels)


def test_columns_and_labels_of_ones_own(tmp_path):
    path = file(tmp_path, "x.jsonl", '{"q1": "a", "q2": "b", "same": 1}', '{"q1": "c", "q2": "d e", "same": 0}')
    reading = Reading(Columns("q1", "q2", "same"), labels=("0", "1"))
    corpus = load_corpus(path, reading)
    assert pairs_of(corpus) == [Pair(["a"], ["b"], 1), Pair(["c"], ["d", "e"], 0)]
    assert corpus.label_names == load_corpus(path, reading).label_names == ("0", "1")
    listed = Reading(reading.columns, labels=["0", "1"])
    assert load_corpus(path, listed, cache=False).label_names == load_corpus(path, listed).label_names == ("0", "1")


def test_byte_order_marks_and_windows_line_ends(tmp_path):
    path = file(tmp_path, "x.tsv", b"\xef\xbb\xbfpremise\thypothesis\tlabel\r", b"a\tb\tneutral\r")
    assert pairs_of(load_corpus(path)) == [Pair(["a"], ["b"], 2)]


def test_tokenizers():
    text = "Don't stop: 1,000.5 o’clock—ÉTÉ!"
    assert tokenizer("whitespace")(text) == text.split()
    assert tokenizer("words")(text) == ["Don't", "stop", ":", "1,000.5", "o’clock", "—", "ÉTÉ", "!"]
    assert tokenizer("words", lower=True)(text)[-2:] == ["été", "!"]
    marked = "cafe\u0301 हिन्दी, e\u0301t’e\u0301 3\u0301"
    assert tokenizer("words")(marked) == ["cafe\u0301", "हिन्दी", ",", "e\u0301t’e\u0301", "3", "\u0301"]
    with pytest.raises(ValueError, match="'nonesuch' is no tokenizer; there are whitespace, words"):
        tokenizer("nonesuch")


def test_reading_options_change_the_tokens(tmp_path):
    path = file(tmp_path, "x.csv", "premise,hypothesis,label", "It's A.,b,neutral")
    assert pairs_of(load_corpus(path))[0].premise == ["It's", "A."]
    assert pairs_of(load_corpus(path, Reading(lower=True)))[0].premise == ["it's", "a."]
    assert pairs_of(load_corpus(path, Reading(tokens="words")))[0].premise == ["It's", "A", "."]
    assert len([*tmp_path.glob("*.tokens")]) == 3


GOOD = '{"gold_label": "neutral", "sentence1": "a", "sentence2": "b"}'


@pytest.mark.parametrize(
    ("name", "lines", "place", "reason"),
    [
        ("x.jsonl", [], "", "holds no labelled pair"),
        ("x.tsv", [], "line 1", "the file is empty"),
        ("x.csv", [], "line 1", "the file is empty"),
        ("x.tsv", ["premise\thypothesis\tlabel"], "", "holds no labelled pair"),
        ("x.tsv", ["premise\tlabel", "a\tneutral"], "line 1", "each of sentence2_binary_parse, sentence2, hyp"),
        ("x.jsonl", ['{"a": 1}'], "line 1", "there are 'a'"),
        ("x.jsonl", [GOOD, GOOD.replace("gold_label", "label")], "line 2", "gold_label is missing"),
        ("x.jsonl", [GOOD, GOOD.replace('"neutral"', "1.5")], "line 2", "gold_label must be a string"),
        ("x.jsonl", [GOOD, GOOD.replace("neutral", "maybe")], "line 2", "'maybe' is none of entailment"),
        ("x.jsonl", [GOOD, "[" * 100_000], "line 2", "nested too deeply"),
        ("x.jsonl", [GOOD, b"\xff"], "line 2", "not UTF-8 at byte 0"),
        ("x.tsv", ["premise\thypothesis\tlabel", "a\tb\t-", b"a\t\xe9\tneutral"], "line 3", "not UTF-8 at byte 2"),
        ("x.csv", ["premise,hypothesis,label", b"a,\xe9,neutral"], "line 2", "not UTF-8 at byte 2"),
        ("x.tsv", ["premise\thypothesis\tlabel", "a\tb"], "line 2", "found 2 columns where the first line names 3"),
        ("x.csv", ["premise,hypothesis,label", "", "a,b,neutral"], "line 2", "found 0 columns"),
        ("x.csv", ["premise,premise,hypothesis,label"], "line 1", "the column premise is there 2 times"),
        ("x.tsv", ["premise\thypothesis\tlabel", "a\tb\tc\td"], "line 2", "found 4 columns"),
        ("x.csv", ["premise,hypothesis,label", "a,b,neutral", 'a,"b,neutral'], "line 3", "unexpected end of data"),
        ("x.csv", ["premise,hypothesis,label", '5" by 5,b,-', '"a\nb","c\n""d', *["a,b,neutral"] * 9],
         "line 3", "a quote in the row that begins here is open up to line 14: unexpected end of data"),
        ("x.csv", ["premise,hypothesis,label", 'a,"b,neutral', *["a,b,neutral"] * 20_000],
         "line 2", "open up to line 10924: field larger than field limit"),
        ("x.csv", ["premise,hypothesis,label", 'a,"b,neutral', "a,b,neutral", '"a, b",c,neutral'],
         "line 2", "open up to line 4: ',' expected"),
        ("x.csv", ["premise,hypothesis,label", "a,b,-", '"a\nb",c'], "line 3", "found 2 columns where the first line"),
        ("x.csv", ["premise,hypothesis,label", '"a\nb\nc",d,perhaps'], "line 2", "the label 'perhaps' is none of"),
        ("x.csv", ["premise,hypothesis,label", "a" * 1_000_000 + ",b,neutral"], "line 2", "larger than field limit"),
        ("x.pdf", [GOOD], "", "must end in one of .jsonl"),
    ],
)  # fmt: skip
def test_hostile_files_are_named_with_line_and_reason(tmp_path, name, lines, place, reason):
    path = file(tmp_path, name, *lines)
    with pytest.raises(DataError) as caught:
        load_corpus(path)
    for part in (str(path), place, reason):
        assert part in str(caught.value)
    assert [*tmp_path.iterdir()] == [path]


def test_huge_lines_are_read(tmp_path):
    """A line of 1 MB, a sentence of 10,000 tokens, a word of half a megabyte, half a surrogate pair."""
    word = "x" * 500_000
    rows = [("a " * 500_000, "b"), ("c " * 10_000, ""), (word, "\ud800"), ("", "")]
    lines = (json.dumps({"premise": a, "hypothesis": b, "label": "neutral"}) for a, b in rows)
    path = file(tmp_path, "x.jsonl", *lines)
    for corpus in (load_corpus(path), load_corpus(path)):  # the second one is cached
        assert corpus.offsets_a.diff().tolist() == [500_000, 10_000, 1, 0]
        assert corpus.offsets_b.diff().tolist() == [1, 0, 1, 0]
        assert {word, "\ud800"} < set(corpus.words)
    batch = PackedBatches(corpus, corpus.vocabulary(1), 4, shuffle=False, max_tokens=50).batch(torch.arange(4))
    assert batch.pairs.lengths_a.tolist() == [50, 50, 1, 0]


def equal(one, other):
    tensors = ("counts", "words_a", "words_b", "offsets_a", "offsets_b", "labels")
    return (one.words, one.label_names, one.unlabelled) == (other.words, other.label_names, other.unlabelled) and all(
        torch.equal(getattr(one, name), getattr(other, name)) for name in tensors
    )


def test_a_corpus_is_kept_and_read_no_more(tmp_path, monkeypatch):
    path = official_txt(tmp_path)
    first = load_corpus(path)
    monkeypatch.setattr("coalign.model.nli.corpus.read_rows", None)
    assert equal(load_corpus(path), first)
    with path.open("a") as more:
        more.write("\n")
    with pytest.raises(TypeError):  # other content, so it is read, by what is not there
        load_corpus(path)


def test_cache_elsewhere_or_nowhere(tmp_path):
    folder, other = tmp_path / "a", tmp_path / "b"
    folder.mkdir()
    other.mkdir()
    path = official_txt(folder)
    load_corpus(path, cache=False)
    load_corpus(path, cache=other)
    assert [*folder.iterdir()] == [path]
    assert len([*other.iterdir()]) == 1
    with pytest.warns(UserWarning, match="the tokenised file is not kept"):
        assert pairs_of(load_corpus(path, cache=tmp_path / "nonesuch")) == OFFICIAL_PAIRS


def test_a_pipe_is_refused_where_it_would_be_read_twice(tmp_path, monkeypatch):
    monkeypatch.setattr("coalign.model.nli.corpus._key", None)  # it would wait for the pipe
    pipe = tmp_path / "x.jsonl"
    os.mkfifo(pipe)
    with pytest.raises(DataError, match=r"x\.jsonl is no regular file"):
        load_corpus(pipe)
    with ThreadPoolExecutor(1) as pool:
        pool.submit(pipe.write_text, GOOD)
        assert pairs_of(load_corpus(pipe, cache=False)) == [Pair(["a"], ["b"], 2)]


@pytest.mark.parametrize("damage", [lambda b: b[:-7], lambda b: b"", lambda b: b"\xff" * len(b)])
def test_a_damaged_cache_is_made_anew(tmp_path, damage):
    path = official_txt(tmp_path)
    first = load_corpus(path)
    (cached,) = tmp_path.glob("*.tokens")
    cached.write_bytes(damage(cached.read_bytes()))
    with pytest.warns(UserWarning, match="is damaged and made anew"):
        assert equal(load_corpus(path), first)
    assert equal(load_corpus(path), first)


def test_a_cache_that_can_not_be_read_is_made_anew(tmp_path, monkeypatch):
    """A folder of its name, whose place nothing takes, and another user's file, as the library reports one."""
    path = official_txt(tmp_path)
    first = load_corpus(path)
    (cached,) = tmp_path.glob("*.tokens")

    def denied(path, framework):
        raise FileNotFoundError(f"No such file or directory: {path}")

    with monkeypatch.context() as patched:
        patched.setattr("coalign.model.nli.corpus.safe_open", denied)
        with pytest.warns(UserWarning, match=r"\.tokens can't be read and is made anew"):
            assert equal(load_corpus(path), first)
    cached.unlink()
    cached.mkdir()
    with pytest.warns(UserWarning, match="is not kept"), pytest.warns(UserWarning, match="can't be read and is made"):
        assert equal(load_corpus(path), first)


def test_a_name_too_long_for_a_caches_is_read(tmp_path):
    path = official_txt(tmp_path).rename(tmp_path / f"{'x' * 235}.txt")
    with pytest.warns(UserWarning, match="the tokenised file is not kept"):
        assert pairs_of(load_corpus(path)) == OFFICIAL_PAIRS


KILLED = """
import os, signal, sys
from pathlib import Path
from coalign.model import atomic
from coalign.model.nli import corpus
def half(tensors, path, metadata):
    Path(path).write_bytes(b"half")
    os.kill(os.getpid(), signal.SIGKILL)
atomic.save_file = half
corpus._key = lambda *arguments: "key"
corpus.kept = lambda *arguments: None  # so that the file there is not used
corpus.load_corpus(sys.argv[1])
"""


def test_kill_9_while_the_cache_is_written_leaves_the_previous_one(tmp_path, monkeypatch):
    path = official_txt(tmp_path)
    monkeypatch.setattr("coalign.model.nli.corpus._key", lambda *_: "key")
    first = load_corpus(path)
    (cached,) = tmp_path.glob("*.tokens")
    before = cached.read_bytes()
    child = subprocess.run([sys.executable, "-c", KILLED, str(path)], check=False, capture_output=True, text=True)
    assert child.returncode == -signal.SIGKILL, child.stderr
    assert cached.read_bytes() == before
    (unfinished,) = tmp_path.glob(".*.unfinished")  # it had begun
    assert unfinished.read_bytes() == b"half"
    assert equal(load_corpus(path), first)
    os.utime(unfinished, (0, 0))
    with replacing(cached) as new:
        new.write_bytes(b"next")
    assert sorted(tmp_path.iterdir()) == sorted([path, cached])


def test_an_error_while_writing_leaves_the_previous_file(tmp_path):
    path = file(tmp_path, "x", "before")

    def fails():
        with replacing(path) as unfinished:
            unfinished.write_text("after")
            raise RuntimeError("on purpose")

    with pytest.raises(RuntimeError, match="on purpose"):
        fails()
    assert path.read_text() == "before\n"
    assert [*tmp_path.iterdir()] == [path]


def test_datasets_not_installed(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ImportError, match=r'pip install "coalign\[datasets\]"'):
        load_corpus("hf:stanfordnlp/snli:train")
    with pytest.raises(DataError, match="a dataset is named hf:NAME:SPLIT"):
        load_corpus("hf:snli")


def test_a_dataset_by_name(monkeypatch):
    """Against a stand-in with the attributes of datasets.Dataset that are used; the order of label names is its own."""

    class Dataset(list):
        column_names = ("premise", "hypothesis", "label")

        @property
        def features(self):
            return {"label": types.SimpleNamespace(names=["entailment", "neutral", "contradiction"])}

    rows = [("a b", "c", 1), ("d", "e", -1), ("f", "", 2)]
    found = Dataset(dict(zip(Dataset.column_names, row, strict=True)) for row in rows)
    stand_in = types.SimpleNamespace(load_dataset=lambda name, split: {("x/y", "train"): found}[name, split])
    monkeypatch.setitem(sys.modules, "datasets", stand_in)
    corpus = load_corpus("hf:x/y:train")
    assert pairs_of(corpus) == [Pair(["a", "b"], ["c"], 2), Pair(["f"], [], 1)]
    assert corpus.unlabelled == 1
    found.append({"premise": None, "hypothesis": "a", "label": 0})
    with pytest.raises(DataError, match="hf:x/y:train, row 4: premise must be a string"):
        load_corpus("hf:x/y:train")
    with pytest.raises(DataError, match="nonesuch is missing"):
        load_corpus("hf:x/y:train", Reading(Columns(premise="nonesuch")))


@pytest.mark.skipif(not SNLI.exists(), reason="the SNLI development file is not beside this checkout")
def test_the_whole_development_set(tmp_path):
    corpus = load_corpus(SNLI, cache=tmp_path)
    assert pairs_of(corpus) == read_snli(SNLI).pairs
    rows = list(read_rows(SNLI))
    assert [row.number for row in rows] == [*range(1, 9843)]
    assert len(corpus.vocabulary()) < len(corpus.words)
    assert int(corpus.counts.sum()) == len(corpus.words_a) + len(corpus.words_b)
