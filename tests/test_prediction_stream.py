"""JSON lines in, JSON lines out: order, memory, what malformed and hostile lines become."""

import io
import json
import os
import queue
import sys
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
import torch
from coalign.model.nli import Columns, JsonPairs, Predictor, predict_lines, prediction_stream
from test_prediction import SMALL, TEXTS, made


@pytest.fixture(scope="module")
def predictor():
    return Predictor(made())


def line(premise, hypothesis, **others):
    return json.dumps({"premise": premise, "hypothesis": hypothesis, **others}).encode()


def answers(predictor, lines, **options):
    """What is written for lines, parsed, and what is complained about."""
    written, complaints = [], []
    file = io.BytesIO(b"\n".join(lines) + b"\n")
    reached = predict_lines(predictor, file, written.append, complain=lambda *told: complaints.append(told), **options)
    found = [json.loads(text) for text in b"".join(written).decode("ascii").splitlines()]
    assert reached == (len(lines), len(complaints), len(file.getvalue()))
    assert len(found) == len(lines)
    return found, complaints


@pytest.mark.parametrize("block", [1, 50, 1000, 1 << 18])
def test_answers_are_the_predictors_in_order(predictor, monkeypatch, block):
    """However the file is cut into blocks."""
    monkeypatch.setattr(prediction_stream, "BLOCK", block)
    found, complaints = answers(predictor, [line(*texts) for texts in TEXTS])
    labels, probabilities = predictor(*zip(*TEXTS, strict=True))
    assert [answer["label"] for answer in found] == labels
    assert len({*labels}) > 1
    for answer, row in zip(found, probabilities, strict=True):
        assert [*answer["probabilities"]] == list(predictor.labels)
        assert [*answer["probabilities"].values()] == pytest.approx(row.tolist(), abs=1e-6)
    assert complaints == []


MALFORMED = [
    (b"{", "not JSON: Expecting property name enclosed in double quotes at column 2"),
    (b"", "empty; expected a JSON object"),
    (b" \r", "empty; expected a JSON object"),
    (b"[1]", "expected a JSON object, not list"),
    (b'{"premise": "a"}', "hypothesis is missing"),
    (b'{"premise": "a", "hypothesis": null}', "hypothesis must be a string"),
    (b'{"premise": 7, "hypothesis": "b"}', "premise must be a string"),
    (b'{"premise": "\xff", "hypothesis": "b"}', "not UTF-8 at byte 13"),
    (b"[" * 100_000, "not JSON that can be read: nested too deeply"),
    (b'{"a": 1}', "premise is missing"),
    (line("a", "b") + line("c", "d"), "not JSON: Extra data at column 36"),
]


@pytest.mark.parametrize("block", [7, 1 << 18])
def test_malformed_lines_stay_in_place(predictor, monkeypatch, block):
    monkeypatch.setattr(prediction_stream, "BLOCK", block)
    good = [line(*texts) for texts in TEXTS[: len(MALFORMED) + 1]]
    lines = [text for pair in zip(good, [bad for bad, _ in MALFORMED], strict=False) for text in pair] + good[-1:]
    found, complaints = answers(predictor, lines)
    assert found[0::2] == answers(predictor, good)[0]
    assert found[1::2] == [
        {"line": number, "error": reason} for number, (_, reason) in zip(range(2, 99, 2), MALFORMED, strict=False)
    ]
    assert complaints == [(answer["line"], answer["error"]) for answer in found[1::2]]


@pytest.mark.parametrize(
    ("lines", "error"),
    [
        (
            [b'{"a": "x", "b": "y"}'],
            "each of sentence1_binary_parse, sentence1, premise is missing; there are 'a', 'b'",
        ),
        ([b"{}"], "each of sentence1_binary_parse, sentence1, premise is missing; there are no columns"),
    ],
)
def test_wrong_columns(predictor, lines, error):
    found, complaints = answers(predictor, [*lines, line("a dog", "a cat")])
    assert found[0] == {"line": 1, "error": error}
    assert found[1] == answers(predictor, [line("a dog", "a cat")])[0][0]
    assert complaints == [(1, error)]


def test_an_empty_file_and_a_last_line_without_an_end(predictor):
    written = []
    assert predict_lines(predictor, io.BytesIO(), written.append) == (0, 0, 0)
    assert written == []
    assert predict_lines(predictor, io.BytesIO(line("a", "b")), written.append).lines == 1
    assert len(written) == 1


def test_columns_are_read_as_training_reads_them(predictor):
    """SNLI's tokens come from its binary parse; named columns from where they are; a byte order mark is none."""
    parsed = {
        "sentence1": "Two dogs run.",
        "sentence1_binary_parse": "( ( two dogs ) run )",
        "sentence2": "A cat.",
        "sentence2_binary_parse": "( a cat )",
    }
    expected = answers(predictor, [line("two dogs run", "a cat")])[0]
    assert answers(predictor, [b"\xef\xbb\xbf" + json.dumps(parsed).encode()])[0] == expected
    columns = JsonPairs(Columns("x", "y"))
    named = [json.dumps({"premise": "other", "x": "two dogs run", "y": "a cat"}).encode()]
    assert answers(predictor, named, pairs=columns)[0] == expected


def test_the_files_first_lines_decide_for_a_share_that_begins_further_on():
    both = line("two dogs", "a cat", sentence1="other", sentence2="words")
    before = b"{\n" + line("a", "b") + b"\n"
    for size, expected in ((len(before), (["two dogs"], ["a cat"])), (2, (["other"], ["words"]))):
        pairs = JsonPairs()
        pairs.settle(io.BytesIO(before + both), size)
        assert pairs.read([both])[:2] == expected
    assert JsonPairs().read([both])[:2] == (["other"], ["words"])


def test_long_lines(predictor, monkeypatch):
    """A line of 1 MB is read like any other; one beyond the limit is an error, and so much is never held."""
    long = "dogs " * 200_000
    found, complaints = answers(predictor, [line(long, "a cat"), line("a", "b")])
    assert found[0] == answers(predictor, [line("dogs " * 50, "a cat")])[0][0]  # d2l's 50 words
    assert complaints == []
    monkeypatch.setattr(prediction_stream, "LONGEST", 1000)
    monkeypatch.setattr(prediction_stream, "BLOCK", 64)
    lines = [line("a", "b"), line("dogs " * 400, "a cat"), line("a", "b"), line("dogs " * 190, "a cat"), b"x" * 5000]
    found, complaints = answers(predictor, lines)
    assert complaints == [(2, "longer than 1000 bytes"), (5, "longer than 1000 bytes")]
    assert found[0] == found[2]
    assert "label" in found[3]


@pytest.mark.parametrize("null_token", [False, True])
def test_hostile_sentences(null_token):
    """Empty ones, and 10,000 words that nothing cuts, against the model that is not frozen."""
    saved = made(replace(SMALL, max_tokens=0, null_token=null_token))
    predictor = Predictor(saved)
    many = " ".join(f"{a} {b}" for a, b in TEXTS * 20)
    many = " ".join(many.split()[:10_000])
    texts = [("", ""), ("two dogs run", ""), ("", "a cat"), (many, "a cat"), ("\ud800 \x00", "a\u2028b")]
    found, complaints = answers(predictor, [line(*pair) for pair in texts])
    expected = saved.build()(predictor.reader.batch(*zip(*texts, strict=True))).softmax(1)
    for answer, row in zip(found, expected.tolist(), strict=True):
        assert [*answer["probabilities"].values()] == pytest.approx(row, abs=1e-4)
    assert complaints == []


def test_memory_does_not_grow_with_the_file(predictor, monkeypatch):
    monkeypatch.setattr(prediction_stream, "BLOCK", 1 << 14)

    class Endless(io.RawIOBase):
        """So many blocks of one pair, made when they are read."""

        left = 0

        def read(self, size):
            self.left -= 1
            return (
                (line("two dogs run across a wet field", "some dogs are outside") + b"\n") * 200 if self.left else b""
            )

    peaks = []
    for blocks in (20, 200):
        file = Endless()
        file.left = blocks + 1
        tracemalloc.start()
        assert predict_lines(predictor, file, lambda text: None).lines == 200 * blocks
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.3 * peaks[0]


def test_the_threads_that_pytorch_uses_stay_as_many(predictor):
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        answers(predictor, [line("a", "b")])
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize(("usual", "while_it_runs"), [(5e-3, 1e-3), (5e-4, 5e-4)])
def test_threads_wait_for_python_no_longer_than_a_millisecond(predictor, usual, while_it_runs):
    """And as long as before when it ends, as it does here by an error in writing."""
    seen, before = [], sys.getswitchinterval()

    def write(text):
        seen.append(sys.getswitchinterval())
        raise BrokenPipeError

    sys.setswitchinterval(usual)
    try:
        with pytest.raises(BrokenPipeError):
            predict_lines(predictor, io.BytesIO(line("a", "b") + b"\n"), write)
        assert [*seen, sys.getswitchinterval()] == pytest.approx([while_it_runs, usual])
    finally:
        sys.setswitchinterval(before)


def test_a_pipe_is_answered_before_more_of_it_is_waited_for(predictor):
    reading, writing = os.pipe()
    written = queue.Queue()
    with open(reading, "rb") as file, ThreadPoolExecutor(1) as pool:
        done = pool.submit(predict_lines, predictor, file, written.put)
        try:
            for i in range(3):
                os.write(writing, line("a man", f"a dog {i}") + b"\n" + b'{"premise": ')
                assert b"label" in written.get(timeout=30)
                os.write(writing, b"3}\n")
                assert b"error" in written.get(timeout=30)
        finally:
            os.close(writing)
        assert done.result(timeout=30).lines == 6
    assert written.empty()
