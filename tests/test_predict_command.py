"""`coalign predict`, as a user runs it: a pair, files, standard input, several processes."""

import io
import json
import os
import select
import subprocess
import sys
from contextlib import nullcontext
from itertools import pairwise

import pytest
from coalign.model.nli import JsonPairs, Predictor, predict_lines, save_checkpoint
from coalign.model.nli.prediction_shards import _line_ends, _line_start, predict_shard
from coalign.model.nli.ranks import Ranks
from test_prediction import TEXTS, made
from test_prediction_stream import line
from typer.testing import CliRunner

from coalign.cli import app


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    save_checkpoint(made(), folder / "best.json")
    return folder


@pytest.fixture(scope="module")
def lines():
    """Many pairs, some lines malformed: enough for shares to begin in the middle."""
    found = [line(*texts) for texts in TEXTS * 30]
    found[0], found[3], found[700], found[-1] = b'{"x": 1}', b"{", b"\xff", b'{"premise": "a"}'
    return found


@pytest.fixture(scope="module")
def expected(model, lines):
    written = []
    predict_lines(Predictor.load(model), io.BytesIO(b"\n".join(lines) + b"\n"), written.append)
    return b"".join(written)


@pytest.fixture
def run():
    runner = CliRunner()
    return lambda *words, **options: runner.invoke(app, ["predict", *map(str, words)], **options)


def test_one_pair(run, model):
    labels, probabilities = Predictor.load(model)(*([text] for text in TEXTS[0]))
    shown = run(model, *TEXTS[0], "--device", "cpu")
    assert shown.exit_code == 0, shown.output
    assert shown.stdout.splitlines()[0] == labels[0]
    assert f"{probabilities[0, 1]:.4f}  contradiction" in shown.stdout
    found = json.loads(run(model, *TEXTS[0], "--json", "--device", "cpu").stdout)
    assert found["label"] == labels[0]
    assert found["probabilities"]["neutral"] == pytest.approx(probabilities[0, 2], abs=1e-6)


def test_a_file_to_a_file(run, model, lines, expected, tmp_path):
    (tmp_path / "pairs.jsonl").write_bytes(b"\n".join(lines))  # and no end of the last line
    shown = run(model, tmp_path / "pairs.jsonl", "--out", tmp_path / "answers.jsonl", "--device", "cpu")
    assert shown.exit_code == 1
    assert (tmp_path / "answers.jsonl").read_bytes() == expected
    assert shown.stdout == ""
    assert "line 1: each of sentence1_binary_parse, sentence1, premise is missing; there are 'x'" in shown.stderr
    assert "line 4: not JSON" in shown.stderr
    assert "line 701: not UTF-8 at byte 0" in shown.stderr
    assert f"{len(lines)} lines, 4 of them malformed" in shown.stderr


def test_standard_input_to_standard_output(run, model, lines, expected):
    good = [text for place, text in enumerate(lines) if place not in (0, 3, 700, len(lines) - 1)]
    shown = run(model, input=b"\n".join(good) + b"\n")
    assert shown.exit_code == 0, shown.stderr
    assert shown.stdout_bytes == b"".join(
        text + b"\n" for text in expected.splitlines() if not text.startswith(b'{"line"')
    )
    assert run(model, "-", input=b"\n".join(lines)).stdout_bytes == expected


def test_so_many_malformed_lines_are_not_all_named(run, model, tmp_path):
    (tmp_path / "empty.jsonl").write_bytes(b"")
    assert run(model, tmp_path / "empty.jsonl").exit_code == 0
    shown = run(model, input=b"x\n" * 1000)
    assert shown.exit_code == 1
    assert len(shown.stdout.splitlines()) == 1000
    assert shown.stderr.count("not JSON") == 20
    assert "1000 lines, 1000 of them malformed" in shown.stderr


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("nonesuch.jsonl",), "nonesuch.jsonl"),
        (("a", "b", "c"), "give a premise and a hypothesis, each in quotes, or one file; not 3 arguments"),
        (("a", "b", "--precision", "float16"), "--precision must be float32 or bfloat16, not 'float16'"),
        (("-", "--columns", "a"), "--columns takes two names with a comma between, not 'a'"),
        (("a", "b", "--backend", "triton", "--device", "cpu"), "backend 'triton' can't serve"),
        (("--out", "nonesuch/answers.jsonl"), "nonesuch"),
    ],
)
def test_bad_input_is_named(run, model, words, message):
    shown = run(model, *words)
    assert shown.exit_code == 1
    assert message in shown.stderr
    assert shown.stdout == ""


def test_answers_go_where_a_link_leads_and_into_pipes(run, model, lines, expected, tmp_path):
    target, link = tmp_path / "target.jsonl", tmp_path / "link.jsonl"
    link.symlink_to(target)
    (tmp_path / "pairs.jsonl").write_bytes(b"\n".join(lines))
    words = model, tmp_path / "pairs.jsonl", "--device", "cpu", "--out"
    assert run(*words, link).exit_code == 1
    assert link.is_symlink()
    assert target.read_bytes() == expected
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with (tmp_path / "copy").open("wb") as copy, subprocess.Popen(["cat", str(pipe)], stdout=copy) as reader:
        assert run(*words, pipe).exit_code == 1
        assert reader.wait(timeout=60) == 0
    assert (tmp_path / "copy").read_bytes() == expected
    assert pipe.is_fifo()
    refused = run(*words, tmp_path)
    assert refused.exit_code == 1
    assert "is a folder" in refused.output


def test_messages_are_not_taken_for_markup(run, model):
    assert "nowhere/[old]/no[/x]" in run(model, "nowhere/[old]/no[/x]").output.replace("\n", "")


def test_a_reader_who_has_enough_is_no_error(model, tmp_path):
    (tmp_path / "pairs.jsonl").write_bytes((line("a", "b") + b"\n") * 50_000)
    command = [sys.executable, "-m", "coalign", "predict", str(model), str(tmp_path / "pairs.jsonl"), "--device", "cpu"]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert "label" in json.loads(child.stdout.readline())
    child.stdout.close()
    assert child.stderr.read().strip() == ""
    assert child.wait() == 0


@pytest.mark.parametrize("closed", ["<", ">"])
def test_a_stream_that_is_closed_is_named(model, closed):
    command = f"{sys.executable} -m coalign predict {model} {closed}&-"
    done = subprocess.run(
        ["bash", "-c", command], stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert f"standard {'input' if closed == '<' else 'output'} is closed" in done.stderr


def test_answers_take_the_place_of_nothing_that_is_read(run, model, tmp_path):
    source = tmp_path / "pairs.jsonl"
    source.write_bytes(line("a", "b") + b"\n")
    (tmp_path / "link").symlink_to(source)
    best = model / "best.json"
    before = best.read_bytes()
    for out, message in (
        (source, "is the file that is read"),
        (tmp_path / "link", "is the file that is read"),
        (best, "is a part of the model"),
    ):
        shown = run(model, source, "--out", out)
        assert shown.exit_code == 1
        assert message in " ".join(shown.stderr.split())
    assert source.read_bytes() == line("a", "b") + b"\n"
    assert best.read_bytes() == before
    assert f"{source} is a file: give it alone" in " ".join(run(model, source, "b").stderr.split())
    assert "label" in run(model, source, "--out", "-").stdout
    missing = run(model, source, "--out", tmp_path / "nowhere/out.jsonl").stderr
    assert "nowhere/out.jsonl'" in "".join(missing.split())


def test_answers_in_a_pipe_come_as_lines_do(model, tmp_path):
    """Before the input ends, though --out names the pipe."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    command = [sys.executable, "-m", "coalign", "predict", str(model), "--device", "cpu", "--out", str(pipe)]
    child = subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.DEVNULL)
    try:
        with pipe.open("rb") as answers:
            child.stdin.write(line("a", "b") + b"\n")
            child.stdin.flush()
            assert select.select([answers], [], [], 60)[0]
            assert "label" in json.loads(answers.readline())
            child.stdin.close()
            assert child.wait(timeout=60) == 0
    finally:
        child.kill()


def test_a_file_from_standard_input_is_not_replaced(model, tmp_path):
    source = tmp_path / "pairs.jsonl"
    source.write_bytes(line("a", "b") + b"\n")
    command = [sys.executable, "-m", "coalign", "predict", str(model), "--device", "cpu", "--out", str(source)]
    with source.open() as file:
        done = subprocess.run(command, stdin=file, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "is the file that is read" in done.stderr
    assert source.read_bytes() == line("a", "b") + b"\n"
    with open(os.devnull) as nothing:
        command[-1] = os.devnull
        done = subprocess.run(command, stdin=nothing, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_answers_beside_the_model_are_written_again_and_the_model_is_not(run, tmp_path):
    checkpoint, chosen, source = made(), tmp_path / "chosen.json", tmp_path / "pairs.jsonl"
    for path in (chosen, tmp_path / "last.json"):
        save_checkpoint(checkpoint, path)
    source.write_bytes(line("a", "b") + b"\n")
    answers = tmp_path / "answers.json"
    for _ in range(2):
        shown = run(chosen, source, "--out", answers)
        assert shown.exit_code == 0, shown.stderr
    assert answers.read_bytes() == run(chosen, source).stdout_bytes
    (tmp_path / "link.jsonl").symlink_to(chosen)
    for name in ("chosen.json", "link.jsonl", "chosen-0.safetensors", "last.json"):
        assert "is a part of the model" in run(chosen, source, "--out", tmp_path / name).stderr


@pytest.mark.parametrize(
    "name", ["nowhere/x.jsonl", ".", "x" * 250, "x" * 300], ids=["folder", "is one", "long", "longer"]
)
def test_where_answers_can_not_be_written_is_said_before_anything_is_read(run, tmp_path, name):
    """Here there is no model either."""
    shown = run(tmp_path / "nonesuch", "-", "--out", tmp_path / name)
    assert shown.exit_code == 1
    assert str(tmp_path / name) in shown.stderr
    assert "nonesuch" not in shown.stderr
    assert [*tmp_path.iterdir()] == []


def test_what_is_no_checkpoint(run, tmp_path):
    assert "best.json" in run(tmp_path, "a", "b").stderr


def test_a_failed_run_leaves_the_previous_answers(run, model, tmp_path, monkeypatch):
    """Here the model fails after the first block."""
    answers = tmp_path / "answers.jsonl"
    answers.write_text("before")

    def fail(self, pairs):
        raise ValueError("the model's scores are not finite")

    monkeypatch.setattr(Predictor, "probabilities", fail)
    shown = run(model, "-", "--out", answers, input=line("a", "b") + b"\n")
    assert shown.exit_code == 1
    assert "not finite" in shown.stderr
    assert answers.read_text() == "before"
    assert [*tmp_path.iterdir()] == [answers]


@pytest.mark.parametrize("content", [b"", b"\n", b"a", b"a\n\nbcd\ne", b"abcdefghijk\n", b"\n\n\nab\n" * 5])
@pytest.mark.parametrize("ranks", [1, 2, 3, 7])
def test_shares_are_whole_lines_and_tile_the_file(content, ranks):
    file = io.BytesIO(content)
    bounds = [_line_start(file, len(content) * rank // ranks) for rank in range(ranks + 1)]
    assert bounds[0] == 0
    assert bounds[-1] == len(content)
    assert bounds == sorted(bounds)
    assert all(content[:bound].endswith(b"\n") for bound in bounds[:-1] if bound not in (0, len(content)))
    counts = [_line_ends(file, a, b) for a, b in pairwise(bounds)]
    assert sum(counts) == content.count(b"\n")


def test_several_processes_share_a_file(model, lines, expected, tmp_path):
    """The bytes are those of one process; line numbers are the file's; no part is left."""
    source, out = tmp_path / "pairs.jsonl", tmp_path / "answers.jsonl"
    source.write_bytes(b"\n".join(lines) + b"\n")
    words = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "coalign", "predict"]
    command = [sys.executable, *words, str(model), str(source), "--out", str(out), "--device", "cpu"]
    shown = subprocess.run(command, capture_output=True, text=True, check=False)
    assert out.read_bytes() == expected, shown.stderr
    assert shown.returncode == 1
    assert "line 701: not UTF-8" in shown.stderr
    assert f"line {len(lines)}: hypothesis is missing" in shown.stderr  # the second one's
    assert shown.stderr.count(f"{len(lines)} lines, 4 of them malformed") == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["answers.jsonl", "pairs.jsonl"]


def test_several_processes_need_files(run, model, monkeypatch):
    monkeypatch.setattr("coalign.predict.joined", lambda place: nullcontext(Ranks(0, 2)))
    shown = run(model, input=b"")
    assert shown.exit_code == 1
    assert "several processes need a file to share, and --out" in shown.stderr


def test_where_another_process_failed_nothing_is_written(model, tmp_path):
    class Failed(Ranks):
        """Rank 1 of two, of which the other says that it failed."""

        def total(self, numbers):
            return numbers

        def any(self, flag):
            return True

    source, out = tmp_path / "pairs.jsonl", tmp_path / "answers.jsonl"
    source.write_bytes(line("a", "b") + b"\n")
    out.write_text("before")
    with pytest.raises(RuntimeError, match="another of the processes failed"):
        predict_shard(Predictor.load(model), source, out, JsonPairs(), Failed(1, 2))
    with pytest.raises(FileNotFoundError):
        predict_shard(Predictor.load(model), tmp_path / "nonesuch", out, JsonPairs(), Failed(1, 2))
    assert out.read_text() == "before"
    assert sorted(tmp_path.iterdir()) == [out, source]


def test_an_interrupted_process_leaves_no_part_behind(model, tmp_path, monkeypatch):
    source, out = tmp_path / "pairs.jsonl", tmp_path / "answers.jsonl"
    source.write_bytes(line("a", "b") + b"\n")
    predictor = Predictor.load(model)

    def interrupted(batch):
        assert [path.name for path in tmp_path.iterdir() if path != source] == [".answers.jsonl.0-of-1.part"]
        raise KeyboardInterrupt

    monkeypatch.setattr(predictor, "scores", interrupted)
    with pytest.raises(KeyboardInterrupt):
        predict_shard(predictor, source, out, JsonPairs(), Ranks())
    assert [*tmp_path.iterdir()] == [source]
