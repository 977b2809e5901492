"""Word vectors: formats, what is kept, missing words, malformed files, the cache."""

import gzip
import time
import tracemalloc
import zipfile

import pytest
import torch
from coalign.model.nli import DataError, Vocabulary, load_word_vectors
from coalign.model.nli.word_vectors import HASHED_VECTORS

VOCABULARY = Vocabulary([["dog", "cat", "été", "zebra", "new york"]])
VECTORS = {"the": [9, 9, 9], "dog": [1, 2, -3.5], "été": [1e-3, 0, 4], "new york": [5, 6, 7], "<unk>": [8, 8, 8]}
LINES = "".join(f"{word} {' '.join(map(str, numbers))}\n" for word, numbers in VECTORS.items()).encode()


def plain(folder, content=LINES, name="glove.3d.txt"):
    (folder / name).write_bytes(content)
    return folder / name


def gzipped(folder):
    with gzip.open(folder / "glove.txt.gz", "wb") as file:
        file.write(LINES)
    return folder / "glove.txt.gz"


def archive(folder, *names):
    with zipfile.ZipFile(folder / "glove.zip", "w") as file:
        for name in names:
            file.writestr(name, LINES if name == "glove.3d.txt" else b"the 1\n")
    return folder / "glove.zip"


@pytest.mark.parametrize("cached", [False, True])
@pytest.mark.parametrize(
    "write",
    [
        plain,
        lambda folder: plain(folder, b"5 3\n" + LINES),  # word2vec's header
        lambda folder: plain(folder, LINES.replace(b"\n", b" \n")),  # its spaces at the ends of lines
        lambda folder: plain(folder, LINES.replace(b"\n", b"\r\n").rstrip()),
        lambda folder: plain(folder, LINES + b"dog 0 0 0\n"),  # the first one counts
        lambda folder: plain(folder, b"\xef\xbb\xbf" + LINES.removeprefix(b"the 9 9 9\n")),  # before the word dog
        lambda folder: plain(folder, LINES.replace(b"the 9 9", b"the  9  9").replace(b" 2 -", b"  2   -")),
        lambda folder: plain(folder, b"5 3\n" + LINES.replace(b" 2 -", b"  2   -")),
        lambda folder: plain(folder, LINES.replace(b" ", b"\t").replace(b"new\t", b"new ")),
        gzipped,
        lambda folder: archive(folder, "glove.3d.txt"),
        lambda folder: f"{archive(folder, 'glove.1d.txt', 'glove.3d.txt')}:glove.3d.txt",
        lambda folder: gzipped(folder).rename(folder / "GLOVE.TXT.GZ"),
        lambda folder: f"{archive(folder, 'a.txt', 'glove.3d.txt').rename(folder / 'GLOVE.ZIP')}:glove.3d.txt",
    ],
    ids=[
        "plain",
        "word2vec",
        "trailing spaces",
        "windows",
        "twice",
        "mark",
        "spaces",
        "word2vec's spaces",
        "tabs",
        "gzip",
        "zip",
        "zip of several",
        "GZ",
        "ZIP",
    ],
)
def test_the_vocabularys_rows(tmp_path, write, cached):
    path = write(tmp_path)
    for _ in range(1 + cached):
        vectors = load_word_vectors(path, VOCABULARY, cache=cached)
    assert vectors.weight.shape == (7, 3)
    assert vectors.dimension == 3
    for i, word in enumerate(VOCABULARY.tokens):
        given = word in VECTORS and word != "<unk>"  # a file's <unk> is another's
        assert bool(vectors.found[i]) == given
        assert vectors.weight[i].tolist() == pytest.approx(VECTORS[word] if given else [0, 0, 0], rel=1e-6)
    assert vectors.coverage == pytest.approx(3 / 5)
    assert len([*tmp_path.glob("*.vectors")]) == cached


def test_missing_words(tmp_path):
    words = [f"w{i}" for i in range(1000)]
    vocabulary = Vocabulary([words, ["dog"]])
    vectors = load_word_vectors(plain(tmp_path), vocabulary)
    assert torch.equal(vectors.embedding(vocabulary), vectors.weight)
    hashed = vectors.embedding(vocabulary, missing="hashed")
    assert torch.equal(hashed, vectors.embedding(vocabulary, missing="hashed"))
    assert not torch.equal(hashed, vectors.embedding(vocabulary, missing="hashed", seed=1))
    assert hashed[vocabulary["dog"]].tolist() == [1, 2, -3.5]
    assert not hashed[vocabulary.padding].any()
    assert hashed[0].any()  # <unk> is a missing word
    assert len(hashed[vocabulary[words]].unique(dim=0)) == HASHED_VECTORS  # 1000 words use each of the 100
    other = Vocabulary([["w5"]])  # a word's vector does not depend on the others
    alone = load_word_vectors(plain(tmp_path), other).embedding(other, missing="hashed")
    assert torch.equal(alone[other["w5"]], hashed[vocabulary["w5"]])
    with pytest.raises(ValueError, match="missing must be 'zeros' or 'hashed'"):
        vectors.embedding(vocabulary, missing="nonesuch")


@pytest.mark.parametrize("missing", ["zeros", "hashed"])
def test_normalised(tmp_path, missing):
    vectors = load_word_vectors(plain(tmp_path), VOCABULARY)
    weight = vectors.embedding(VOCABULARY, missing=missing, normalize=True)
    expected = torch.ones(7) if missing == "hashed" else vectors.found.float()
    expected[VOCABULARY.padding] = 0
    torch.testing.assert_close(weight.norm(dim=1), expected)
    torch.testing.assert_close(weight[2] * vectors.weight[2].norm(), vectors.weight[2])


def test_blank_lines_at_the_end_are_no_rows(tmp_path):
    for content in (b"the 1 2\ndog 3 4\n\n \n", b"2 2\nthe 1 2\ndog 3 4\n\n"):
        path = tmp_path / "v.txt"
        path.write_bytes(content)
        vectors = load_word_vectors(path, VOCABULARY, cache=False)
        assert vectors.weight[VOCABULARY["dog"]].tolist() == [3, 4]
    path.write_bytes(b"3 2\nthe 1 2\ndog 3 4\n\n")
    with pytest.raises(DataError, match="says 3 words, but there are 2"):
        load_word_vectors(path, VOCABULARY, cache=False)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty; expected a word and its numbers"),
        (b"dog\n", "line 1: expected a word and its numbers, found 1 fields"),
        (b"dog x y\n", "line 1: could not convert string to float"),
        (b"the 1 2\ndog 1\n", "line 2: expected a word and 2 numbers, found 2 fields"),
        (b"the 1 2\n\ndog 1 2\n", "line 2: expected a word and 2 numbers"),
        (b"the 1 2\ndog 1 2x\n", "line 2: could not convert string to float"),
        (b"the 1 2\ndog 1 nan\n", "line 2: the vector of 'dog' is not finite"),
        (b"the 1 2 3\ndog  1 2\n", "line 2: expected a word and 3 numbers, found 3 fields"),
        (b"9 3\nthe 1 2\n", "line 2: expected a word and 3 numbers, found 3 fields"),
        (b"2 2\nthe 1 2 3\ndog 4 5 6\n", "line 2: expected a word and 2 numbers, found 4 fields"),
        (b"2 2\nthe 1 2\ndog -1.5e3 5 6\n", "line 3: expected a word and 2 numbers, found 4 fields"),
    ],
)
def test_malformed_files_are_named_with_line_and_reason(tmp_path, content, message):
    path = plain(tmp_path, content)
    with pytest.raises(DataError) as caught:
        load_word_vectors(path, VOCABULARY)
    assert str(path) in str(caught.value)
    assert message in str(caught.value)
    assert [*tmp_path.iterdir()] == [path]


def test_archives_that_are_none_or_hold_something_else(tmp_path):
    with pytest.raises(DataError, match=r"holds 2 files; name one of them: .*glove\.zip:a\.txt"):
        load_word_vectors(archive(tmp_path, "a.txt", "b.txt"), VOCABULARY)
    with pytest.raises(DataError, match=r"holds no c\.txt; it has a\.txt, b\.txt"):
        load_word_vectors(f"{tmp_path / 'glove.zip'}:c.txt", VOCABULARY)
    for name in ("x.zip", "x.gz"):
        with pytest.raises(DataError, match=name):
            load_word_vectors(plain(tmp_path, b"the 1 2\n", name), VOCABULARY)
    whole = gzipped(tmp_path)
    whole.write_bytes(whole.read_bytes()[:-9])
    with pytest.raises(DataError, match="ended before the end-of-stream marker"):
        load_word_vectors(whole, VOCABULARY)
    locked = bytearray(archive(tmp_path, "a.txt").read_bytes())
    locked[6] |= 1  # of the member's own header: encrypted
    locked[locked.index(b"PK\x01\x02") + 8] |= 1  # and of the directory's
    with pytest.raises(DataError, match="encrypted"):
        load_word_vectors(plain(tmp_path, bytes(locked), "glove.zip"), VOCABULARY)
    with pytest.raises(FileNotFoundError):
        load_word_vectors(tmp_path / "nonesuch.txt", VOCABULARY)


def test_the_cache_is_used_and_follows_file_and_vocabulary(tmp_path, monkeypatch):
    path = plain(tmp_path)
    first = load_word_vectors(path, VOCABULARY)
    with monkeypatch.context() as patched:
        patched.setattr("coalign.model.nli.word_vectors._read", None)
        assert torch.equal(load_word_vectors(path, VOCABULARY).weight, first.weight)
        with pytest.raises(TypeError):  # another vocabulary, so the file is read, by what is not there
            load_word_vectors(path, Vocabulary([["dog"]]))
    plain(tmp_path, LINES.replace(b"dog 1", b"dog 77"))
    assert load_word_vectors(path, VOCABULARY).weight[VOCABULARY["dog"], 0] == 77
    for cached in tmp_path.glob("*.vectors"):
        cached.write_bytes(b"damaged")
    with pytest.warns(UserWarning, match="is damaged and made anew"):
        assert load_word_vectors(path, VOCABULARY).weight[VOCABULARY["dog"], 0] == 77
    with pytest.warns(UserWarning, match="are not kept"):
        load_word_vectors(path, VOCABULARY, cache=tmp_path / "nonesuch")


def test_a_cache_that_can_not_be_read_is_made_anew(tmp_path):
    """A folder of its name."""
    path = plain(tmp_path)
    first = load_word_vectors(path, VOCABULARY)
    (cached,) = tmp_path.glob("*.vectors")
    cached.unlink()
    cached.mkdir()
    with pytest.warns(UserWarning, match="are not kept"), pytest.warns(UserWarning, match="can't be read and is made"):
        assert torch.equal(load_word_vectors(path, VOCABULARY).weight, first.weight)


def test_a_large_file_is_streamed(tmp_path):
    """200,000 words of 20 numbers, 20 MB and more: what is kept in memory is a few rows."""
    numbers = " ".join(["0.12345"] * 20)
    content = "".join(f"word{i} {numbers}\n" for i in range(200_000)).encode()
    path = plain(tmp_path, content)
    size = len(content)
    del content
    vocabulary = Vocabulary([["word7", "word199999"]])
    tracemalloc.start()
    start = time.perf_counter()
    vectors = load_word_vectors(path, vocabulary)
    seconds = time.perf_counter() - start
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert vectors.coverage == 1
    assert peak < size / 20
    assert seconds < 60


def test_a_list_that_was_cut_off(tmp_path):
    """word2vec's first line says how many words there are."""
    path = tmp_path / "vectors.txt"
    path.write_text("3 2\ndog 1 2\ncat 3 4\n")
    with pytest.raises(DataError, match=r"line 3: the first line says 3 words, but there are 2: the end is missing"):
        load_word_vectors(path, VOCABULARY)
