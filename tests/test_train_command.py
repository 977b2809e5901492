"""`coalign train` and `coalign evaluate`, as a user runs them."""

import csv
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from dataclasses import fields
from pathlib import Path

import pytest
import torch
from coalign.model.nli import LABELS, Settings, evaluate, load_checkpoint, save_checkpoint
from coalign.model.nli.examples import example_pairs
from rich.console import Console
from test_training import write_pairs
from typer.testing import CliRunner

from benchmarks import pipeline, results, training
from coalign.cli import app

SMALL = (
    "--embed-size=8",
    "--num-hiddens=12",
    "--min-freq=1",
    "--batch-size=16",
    "--learning-rate=0.01",
    "--device=cpu",
)


def run(*words):
    return CliRunner().invoke(app, [str(word) for word in words])


@pytest.fixture
def data(tmp_path):
    """45 pairs to train on and 15 to evaluate on."""
    pairs = example_pairs()
    return [write_pairs(tmp_path / f"{name}.jsonl", some) for name, some in (("t", pairs[:45]), ("v", pairs[45:]))]


def process(*words):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "200"}
    return subprocess.Popen(
        [sys.executable, "-m", "coalign", *map(str, words)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    )


def test_ctrl_c_saves_and_resume_goes_on_to_the_same_bits(tmp_path, data):
    part, whole = tmp_path / "part", tmp_path / "whole"
    first = process("train", data[0], "--out", part, "--validation", data[1], *SMALL, "--epochs=100000")
    try:
        until = time.monotonic() + 120
        while not (part / "log.csv").exists():
            assert first.poll() is None, first.communicate()
            assert time.monotonic() < until
            time.sleep(0.02)
        first.send_signal(signal.SIGINT)
        told = first.communicate(timeout=300)[1]
    finally:
        first.kill()
        first.communicate()
    assert first.returncode == 130, told
    stopped = load_checkpoint(part / "last.json")
    assert f"stopped after step {stopped.step}; go on with --resume" in told
    assert stopped.batch in (0, 1, 2)  # between two epochs of three, or within one
    assert stopped.step == 3 * stopped.epoch + stopped.batch
    epochs = stopped.epoch + 3
    second = process("train", data[0], "--out", part, "--validation", data[1], "--resume", f"--epochs={epochs}")
    said, told = second.communicate(timeout=300)
    assert second.returncode == 0, told
    assert f"checkpoints in {part}" in said
    settings = (*SMALL, f"--epochs={epochs}")
    assert run("train", data[0], "--out", whole, "--validation", data[1], *settings).exit_code == 0
    one, other = (load_checkpoint(folder / "last.json") for folder in (part, whole))
    assert one.step == other.step == 3 * epochs
    assert all(torch.equal(one.model[name], other.model[name]) for name in other.model)
    assert [line["validation_loss"] for line in one.history] == [line["validation_loss"] for line in other.history]


def test_a_run_that_ended_before_its_last_line_was_logged_has_it_when_it_goes_on(tmp_path, data):
    words = ("train", data[0], "--out", tmp_path / "run", *SMALL, "--epochs=2")
    assert run(*words).exit_code == 0
    log = tmp_path / "run/log.csv"
    whole = log.read_text()
    log.write_text("".join(whole.splitlines(keepends=True)[:2]))  # what a process killed behind last.json leaves
    assert run(*words, "--resume").exit_code == 0
    assert log.read_text() == whole


def test_help_says_each_settings_default(monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    shown = run("train", "--help").stdout
    for setting in fields(Settings):
        assert re.search(rf"--{setting.name.replace('_', '-')} .* d2l: {re.escape(str(setting.default))}\.", shown)


@pytest.mark.parametrize("reader", ["true", "head -1"])
def test_training_goes_on_when_nobody_reads_any_more(tmp_path, data, reader):
    words = [sys.executable, "-m", "coalign", "train", data[0], "--out", tmp_path / "run", *SMALL, "--epochs=2"]
    command = f"{shlex.join(map(str, words))} | {reader}; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    assert load_checkpoint(tmp_path / "run").epoch == 2


def test_training_then_evaluation(tmp_path, data, monkeypatch):
    trained = run("train", data[0], "--out", tmp_path / "run", "--validation", data[1], *SMALL, "--epochs=5")
    assert trained.exit_code == 0, trained.output
    assert "45 pairs" in trained.stdout
    with (tmp_path / "run/log.csv").open() as log:
        best = max(float(line["validation_accuracy"]) for line in csv.DictReader(log))
    assert f"best accuracy {best:.4f}" in trained.stdout
    found = json.loads(run("evaluate", tmp_path / "run", data[1], "--json").stdout)
    assert found["accuracy"] == best
    assert found["pairs"] == sum(map(sum, found["confusion"])) == 15
    assert set(found["classes"]) == set(LABELS)
    shown = run("evaluate", tmp_path / "run", data[1]).stdout
    assert f"accuracy {best:.4f}" in shown
    assert "41+" not in shown
    assert "11-15" in shown
    monkeypatch.setattr("coalign.train.console", Console(width=80))
    shown = run("evaluate", tmp_path / "run", data[1]).stdout
    assert "…" not in shown  # in an ordinary terminal no name and no number is cut
    assert "said contradiction" in shown
    broken = load_checkpoint(tmp_path / "run/best.json")
    broken.model["aggregate.linear.bias"][0] = torch.nan
    save_checkpoint(broken, tmp_path / "broken.json")
    assert "not finite" in run("evaluate", tmp_path / "broken.json", data[1]).stderr
    assert "not finite" in run("explain", tmp_path / "broken.json", "a man", "a man").stderr


def test_vectors_and_parameters_follow_the_options(tmp_path, data):
    vectors = tmp_path / "vectors.txt"
    vectors.write_text("man 3 0 0 0 0 0 0 4\n")

    def trained(number, *options):
        given = (*SMALL, "--epochs=1", "--no-train-embedding", "--missing=hashed", f"--vectors={vectors}", *options)
        done = run("train", data[0], "--out", tmp_path / str(number), *given)
        assert done.exit_code == 0, done.output
        saved = load_checkpoint(tmp_path / str(number) / "last.json")
        return saved.model["embedding.weight"], saved.vocabulary["man"], saved.model["aggregate.linear.weight"]

    plain, man, drawn = trained(0)
    assert plain[man].tolist() == [3, 0, 0, 0, 0, 0, 0, 4]
    scaled, _, _ = trained(1, "--normalize")
    torch.testing.assert_close(scaled, torch.nn.functional.normalize(plain))
    seeded, _, other = trained(2, "--seed=1")
    assert (seeded == plain).all(1).nonzero().flatten().tolist() == [1, man]  # <pad>, and what the file has
    assert (other - drawn).norm() > 0.5 * drawn.norm()


def test_evaluation_is_by_the_backend_and_in_the_batches_asked_for(tmp_path, data, monkeypatch):
    assert run("train", data[0], "--out", tmp_path / "run", *SMALL, "--epochs=1").exit_code == 0
    seen = []

    def watched(model, batches, *arguments, **options):
        batches = list(batches)
        seen.append((model.backend, [len(batch.pairs) for batch in batches]))
        return evaluate(model, batches, *arguments, **options)

    monkeypatch.setattr("coalign.train.evaluated", watched)
    for options in (("--batch-size=7", "--backend=reference"), ("--device=cpu",)):
        assert run("evaluate", tmp_path / "run", data[1], *options).exit_code == 0
    assert seen == [("reference", [7, 7, 1]), (None, [15])]
    refused = run("evaluate", tmp_path / "run", data[1], "--backend=triton", "--device=cpu")
    assert refused.exit_code == 1
    assert "Triton runs on GPU tensors" in refused.stderr


def test_of_how_many_words_there_are_vectors(tmp_path):
    """<unk> and <pad>, which no file has, are none of them."""
    pairs = tmp_path / "pairs.tsv"
    pairs.write_text("premise\thypothesis\tlabel\na man\tman runs\tneutral\n")
    vectors = tmp_path / "vectors.txt"
    vectors.write_text("man 3 0 0 0 0 0 0 4\nzebra 1 0 0 0 0 0 0 0\nruns 1 0 0 0 0 0 0 1\n")
    done = run("train", pairs, "--out", tmp_path / "run", *SMALL, "--epochs=1", f"--vectors={vectors}")
    assert done.exit_code == 0, done.output
    assert "66.7% of 3 words have a vector" in done.stdout


@pytest.mark.parametrize("tokens", [50, 0], ids=["cut", "whole"])
def test_long_and_empty_sentences_are_trained_on_and_evaluated(tmp_path, data, tokens):
    """A line of 1 MB, a sentence of 10,000 tokens, pairs with nothing on one side or both."""
    words = ["a man sleeps", " ".join(["run"] * 10_000), "a " + "x" * 1_000_000, ""]
    rows = [(a, b, LABELS[i % 3]) for i, a in enumerate(words) for b in ("a dog runs", "")]
    names = ("sentence1", "sentence2", "gold_label")
    path = tmp_path / "hostile.jsonl"
    path.write_text("".join(json.dumps(dict(zip(names, row, strict=True))) + "\n" for row in rows))
    settings = (*SMALL, "--epochs=2", f"--max-tokens={tokens}")
    trained = run("train", path, "--out", tmp_path / "run", "--validation", data[1], *settings)
    assert trained.exit_code == 0, trained.output
    found, plain = (
        json.loads(run("evaluate", tmp_path / "run", path, "--json", "--batch-size=3", *route).stdout)
        for route in ((), ("--backend=reference",))
    )
    assert found["pairs"] == 8
    assert found["by_length"].get("41+", {"pairs": 0})["pairs"] == 2
    # ten thousand words are added up in another order, in float32: their sums differ by rounding more than a sentence's
    assert found["loss"] == pytest.approx(plain["loss"], rel=1e-4)
    assert found["confusion"] == plain["confusion"]


@pytest.mark.parametrize("command", ["train", "evaluate"])
@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.jsonl", b"", "holds no labelled pair"),
        ("x.tsv", b"", "line 1: the file is empty"),
        ("x.csv", b"premise,label\na,neutral\n", "line 1: each of"),
        ("x.jsonl", b'{"sentence1": "a"}\n', "line 1:"),
        ("x.jsonl", b"\xff\n", "line 1: not UTF-8 at byte 0"),
        ("x.tsv", b"premise\thypothesis\tlabel\na\tb\tperhaps\n", "line 2: the label 'perhaps' is none of"),
        ("x.xml", b"<a/>", "must end in one of .jsonl"),
    ],
)
def test_bad_files_are_named_and_nothing_is_written(tmp_path, data, command, name, content, message):
    path = tmp_path / name
    path.write_bytes(content)
    if command == "train":
        result = run("train", path, "--out", tmp_path / "run", *SMALL)
        assert not (tmp_path / "run").exists()
    else:
        assert run("train", data[0], "--out", tmp_path / "run", *SMALL, "--epochs=1").exit_code == 0
        result = run("evaluate", tmp_path / "run", path)
    assert result.exit_code == 1
    for part in (name, message):
        assert part in result.stderr
    assert "Traceback" not in result.output


def test_wishes_that_can_not_be_granted(tmp_path, data):
    out = tmp_path / "run"
    assert run("train", data[0], "--out", out, *SMALL, "--epochs=1").exit_code == 0
    for words, message in (
        (("--preset=nonesuch",), "'nonesuch' is no preset; there are d2l, parikh, parikh-intra"),
        (("--columns=a,b",), "--columns takes three names"),
        (("--dropout=1",), "dropout must lie in [0, 1)"),
        (("--max-tokens=100000000000000000000",), "max_tokens must be below 2^31, not 100000000000000000000"),
        (("--embed-size=1", "--num-hiddens=10000000", "--device=cpu"), "not enough memory on cpu: make --embed-size, "),
        (("--resume",), "last.json"),
        (("--vectors=nonesuch.txt",), "nonesuch.txt"),
        (("--validation=nonesuch.jsonl",), "nonesuch.jsonl"),
        (("--device=nonesuch",), "--device nonesuch"),
        (("--out", out), "already holds a run"),
        (("--out", out, "--resume", "--dropout=0.5", "--lower"), "leave out dropout, lower"),
        (("--out", out, "--resume", "--preset=parikh"), "leave out preset"),
        (("--out", out, "--resume", "--labels=a,b,c"), "leave out --labels"),
        (("--out", data[0], *SMALL), str(data[0])),
    ):
        result = run("train", data[0], "--out", tmp_path / "other", *words)
        assert result.exit_code == 1, words
        assert message in " ".join(result.stderr.split()), words
        assert not (tmp_path / "other").exists()
    assert run("evaluate", tmp_path / "other", data[1]).exit_code == 1
    same = ("--labels=entailment, contradiction, neutral", *SMALL, "--epochs=2")
    again = run("train", data[0], "--out", out, "--resume", "--preset=d2l", "--vectors=nonesuch.txt", *same)
    assert again.exit_code == 0, again.stderr
    assert "--vectors is not read again" in again.stderr
    assert "--device" in run("evaluate", out, data[1], "--device=meta").stderr


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="there is no folder that root can't write to")
def test_a_folder_that_can_not_be_written_to_is_named_before_training(data):
    result = run("train", data[0], "--out", "/proc/self", *SMALL, "--epochs=1")
    assert result.exit_code == 1
    assert "/last.json" in result.stderr
    assert result.stdout == ""


def test_the_rate_against_the_bare_step_is_measured(data, capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(training, "ROUNDS", 2)
    monkeypatch.setattr(results, "FOLDER", tmp_path)
    training.main(str(data[0]))
    found = json.loads(capsys.readouterr().out)
    assert found["pairs"] == 45
    assert [len(times) for times in found["samples"].values()] == [3, 3]  # the first one warms up
    assert found["ratio"] == pytest.approx(found["command pairs/s"] / found["bare pairs/s"], rel=0.01)
    assert results.read(results.file_of("cpu", "pipeline")) == [found]


@pytest.mark.parametrize("path", sorted(results.FOLDER.glob("*/pipeline.jsonl")), ids=lambda path: path.parent.name)
def test_readme_says_what_the_commands_keep(path):
    """Or the page about performance, of the processors that have their tables there."""
    pages = [(Path(__file__).parents[1] / name).read_text() for name in ("README.md", "docs/performance.md")]
    assert any(pipeline.sentence(results.read(path)) in " ".join(page.split()) for page in pages)
