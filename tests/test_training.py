"""Training: presets, resuming, checkpoints, what stops a run; evaluation."""

import csv
import json
import signal
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from coalign.model.nli import (
    LABELS,
    PRESETS,
    DataError,
    Settings,
    Training,
    TrainingError,
    evaluate,
    load_checkpoint,
    load_corpus,
)
from coalign.model.nli.examples import example_pairs
from torch import nn

SMALL = Settings(embed_size=8, num_hiddens=12, min_freq=1, batch_size=16, epochs=3, learning_rate=0.01)


def write_pairs(path, pairs):
    names = ("sentence1", "sentence2", "gold_label")
    rows = ((" ".join(p.premise), " ".join(p.hypothesis), LABELS[p.label]) for p in pairs)
    path.write_text("".join(json.dumps(dict(zip(names, row, strict=True))) + "\n" for row in rows))
    return path


@pytest.fixture
def corpora(tmp_path):
    """45 pairs to train on and 15 to evaluate on."""
    pairs = example_pairs()
    parts = (("training", pairs[:45]), ("validation", pairs[45:]))
    return [load_corpus(write_pairs(tmp_path / f"{name}.jsonl", some)) for name, some in parts]


def without_seconds(history):
    return [{name: value for name, value in numbers.items() if name != "seconds"} for numbers in history]


@pytest.mark.parametrize(("preset", "parameters"), [("d2l", 261_803), ("parikh", 381_803), ("parikh-intra", 582_214)])
def test_presets_have_the_papers_sizes(preset, parameters):
    model = PRESETS[preset].model(9)
    assert sum(p.numel() for name, p in model.named_parameters() if name != "embedding.weight") == parameters
    assert model.embedding.weight.requires_grad == (preset == "d2l")


def test_training_learns_and_keeps_the_best(tmp_path, corpora):
    training, validation = corpora
    run = Training(replace(SMALL, epochs=40, dropout=0.0), training, validation, tmp_path / "run")
    seen = []
    assert run.run(seen.append)
    assert run.history[-1]["training_accuracy"] > 0.8
    assert run.history[-1]["training_loss"] < 0.5 * run.history[0]["training_loss"]
    assert [reached.pairs for reached in seen[:4]] == [16, 32, 45, 16]
    best = max(numbers["validation_accuracy"] for numbers in run.history)
    saved = load_checkpoint(tmp_path / "run")
    assert saved.best == best
    found = evaluate(
        saved.build(), saved.settings.batches(validation, saved.vocabulary, training=False).epoch(), LABELS
    )
    assert found.accuracy == best
    with (tmp_path / "run/log.csv").open() as log:
        assert [float(line["training_loss"]) for line in csv.DictReader(log)] == [
            numbers["training_loss"] for numbers in run.history
        ]
    assert len([*(tmp_path / "run").glob("*.safetensors")]) == 2


@pytest.mark.parametrize("optimizer", ["adam", "adagrad"])
@pytest.mark.parametrize("steps", [1, 3, 4, 8])
def test_a_resumed_run_has_the_same_bits(tmp_path, corpora, optimizer, steps):
    """Stopped after some steps, within an epoch or between two; there are 3 an epoch."""
    settings = replace(SMALL, optimizer=optimizer, bucketed=True)
    whole = Training(settings, *corpora, tmp_path / "whole")
    assert whole.run()
    part = Training(settings, *corpora, tmp_path / "part")
    assert not part.run(stop=lambda: part.step >= steps)
    torch.rand(7)  # dropout is the step's, whatever happened in between
    resumed = Training(settings, *corpora, tmp_path / "part", resume=load_checkpoint(tmp_path / "part/last.json"))
    assert resumed.step >= steps
    assert resumed.run()
    assert without_seconds(resumed.history) == without_seconds(whole.history)
    for name, parameter in whole.model.state_dict().items():
        assert torch.equal(resumed.model.state_dict()[name], parameter), name
    for one, other in zip(whole.optimizer.state.values(), resumed.optimizer.state.values(), strict=True):
        assert all(torch.equal(one[name], other[name]) for name in one)


def test_every_step_has_a_dropout_of_its_own_that_the_seed_decides(tmp_path, corpora):
    """The test above would notice a step with another's numbers."""
    runs = [Training(replace(SMALL, seed=seed), *corpora, tmp_path / "run") for seed in (0, 0, 1)]
    seeds = []
    for run in runs:
        run.model.attend.f[0].register_forward_hook(lambda *call: seeds.append(torch.initial_seed()))
        torch.rand(7)
        run.run()
    steps = len(seeds) // 3  # hooks are called in evaluation too
    assert seeds[:steps] == seeds[steps : 2 * steps]
    assert len({*seeds[:steps], *seeds[2 * steps :]}) == 2 * 9
    weights = [run.model.attend.f[1].weight for run in runs]
    assert torch.equal(weights[0], weights[1])


def test_the_plain_model_has_the_same_curve(tmp_path, corpora):
    runs = [
        Training(replace(SMALL, dropout=0.0), *corpora, tmp_path / str(route), backend=route)
        for route in (None, "reference")
    ]
    for run in runs:
        run.run()
    fast, plain = ([numbers["training_loss"] for numbers in run.history] for run in runs)
    assert fast == pytest.approx(plain, rel=1e-4)


@pytest.mark.parametrize(
    "changes",
    [
        {"precision": "bfloat16"},
        {"null_token": True, "projection_size": 6, "train_embedding": False, "max_tokens": 0},
        {"null_token": True, "projection_size": 6, "intra_attention": True},
        {"optimizer": "adagrad", "learning_rate": 0.1, "tokens": "words", "lower": True, "max_tokens": 3},
    ],
)
def test_other_settings_train(tmp_path, corpora, changes):
    """Long enough that the loss falls by much: after a few steps with dropout it falls or rises by luck."""
    run = Training(replace(SMALL, epochs=30, dropout=0.0, **changes), *corpora, tmp_path / "run")
    before = run.model.embedding.weight.detach().clone()
    assert run.run()
    assert run.history[-1]["training_loss"] < 0.7 * run.history[0]["training_loss"]
    assert torch.equal(run.model.embedding.weight, before) == (not run.settings.train_embedding)
    assert load_checkpoint(tmp_path / "run").settings == run.settings


def test_a_null_token_stands_before_each_sentence(corpora):
    settings = replace(SMALL, null_token=True)
    vocabulary = settings.vocabulary(corpora[0])
    batch = next(settings.batches(corpora[0], vocabulary, training=False).epoch()).pairs
    assert vocabulary.tokens[2] == "<null>"
    assert batch.ids_a[batch.offsets_a[:-1]].tolist() == [2] * 16
    assert (batch.ids_a == 2).sum() == 16


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path, corpora):
    run = Training(SMALL, *corpora, tmp_path / "run")
    run.run(stop=lambda: run.step >= 2)
    before = {name: p.clone() for name, p in run.model.state_dict().items()}
    with torch.no_grad():
        run.model.aggregate.linear.bias[0] = torch.nan
    with pytest.raises(TrainingError, match=r"the loss of step 3 \(epoch 1\) is nan; .*failed\.json"):
        run.run()
    failed = load_checkpoint(tmp_path / "run/failed.json")
    assert failed.step == 2
    assert torch.equal(failed.model["compare.g.1.weight"], before["compare.g.1.weight"])
    assert load_checkpoint(tmp_path / "run/last.json").step == 2


def test_epochs_of_one_batch_can_be_stopped_too(tmp_path, corpora):
    run = Training(replace(SMALL, batch_size=1000, epochs=5), *corpora, tmp_path / "run")
    assert not run.run(stop=lambda: run.epoch == 2)
    assert load_checkpoint(tmp_path / "run/last.json").epoch == 2


@pytest.mark.parametrize("validated", [True, False], ids=["with validation", "without"])
def test_weights_that_the_last_step_spoils_are_not_saved_to_go_on_from(tmp_path, corpora, validated):
    training, validation = corpora
    run = Training(replace(SMALL, epochs=2), training, validation if validated else None, tmp_path / "run")
    steps = len(run.batches)

    def spoil(progress):
        if run.step == 2 * steps:
            with torch.no_grad():
                run.model.aggregate.linear.bias[0] = torch.nan

    with pytest.raises(TrainingError, match=rf"after step {2 * steps} \(epoch 2\) a loss or a parameter"):
        run.run(spoil)
    assert load_checkpoint(tmp_path / "run/last.json").step == steps
    assert load_checkpoint(tmp_path / "run/failed.json").step == 2 * steps


def test_the_best_accuracy_is_of_one_kind(tmp_path, corpora):
    training, validation = corpora
    for held_out, best in ((validation, 2.0), (None, -1.0)):
        first = Training(replace(SMALL, epochs=1), training, held_out, tmp_path / "run")
        first.run()
        first.best = 2.0  # which no accuracy reaches
        first._save("last.json")
        saved = load_checkpoint(tmp_path / "run/last.json")
        assert Training(SMALL, training, validation, tmp_path / "run", resume=saved).best == best


def test_a_run_goes_on_with_the_pairs_that_its_best_was_chosen_by(tmp_path, corpora):
    training, validation = corpora
    Training(replace(SMALL, epochs=1), training, validation, tmp_path / "run").run()
    saved = load_checkpoint(tmp_path / "run/last.json")
    others = replace(validation, labels=validation.labels.flip(0))
    for old in (False, True):  # earlier versions wrote no digest
        for held_out in (None, *([] if old else [others])):
            with pytest.raises(
                ValueError, match=r"evaluated on other validation pairs, by which best\.json was chosen"
            ):
                Training(SMALL, training, held_out, tmp_path / "run", resume=saved)
        saved.validated = saved.digest = ""
    assert Training(SMALL, training, validation, tmp_path / "run", resume=saved).step == saved.step


def test_validation_pairs_of_other_labels_are_refused(tmp_path, corpora):
    training, validation = corpora
    others = replace(validation, label_names=tuple(reversed(validation.label_names)))
    with pytest.raises(ValueError, match=r"the validation pairs' labels, neutral, .* in the same order"):
        Training(SMALL, training, others, tmp_path / "run")


def test_a_folder_is_one_runs_at_a_time(tmp_path, corpora):
    pytest.importorskip("fcntl")
    run, other = (Training(replace(SMALL, epochs=1), *corpora, str(tmp_path / "run")) for _ in range(2))

    def meanwhile(progress):
        with pytest.raises(BlockingIOError, match="another run is at work in this folder"):
            other.run()

    assert run.run(meanwhile)
    assert not other.step
    assert other.run()


KILLED = """
import os, signal, sys
from pathlib import Path
from coalign.model import atomic
from coalign.model.nli import checkpoint
given = checkpoint.load_checkpoint(Path(sys.argv[1]))
given.step = int(sys.argv[3])
replace, count = os.replace, 0
def killing(*arguments):
    global count
    count += 1
    if count == int(sys.argv[2]):
        os.kill(os.getpid(), signal.SIGKILL)
    replace(*arguments)
os.replace = killing
checkpoint.save_checkpoint(given, Path(sys.argv[1]))
"""


@pytest.mark.parametrize("when", [1, 2], ids=["before the tensors are in place", "before the JSON is"])
@pytest.mark.parametrize("step", [9, 10], ids=["the same step", "another step"])
def test_kill_9_while_a_checkpoint_is_written_leaves_the_previous_one(tmp_path, corpora, when, step):
    run = Training(SMALL, *corpora, tmp_path / "run")
    run.run()
    path = tmp_path / "run/last.json"
    before, text = load_checkpoint(path), path.read_text()
    command = [sys.executable, "-c", KILLED, str(path), str(when), str(step)]
    child = subprocess.run(command, check=False, capture_output=True, text=True)
    assert child.returncode == -signal.SIGKILL, child.stderr
    assert path.read_text() == text
    after = load_checkpoint(path)
    assert after.step == before.step == 9
    assert all(torch.equal(after.model[name], before.model[name]) for name in before.model)
    assert run.run()  # a finished run does nothing more
    Training(replace(SMALL, epochs=4), *corpora, tmp_path / "run", resume=after)


@pytest.mark.parametrize("name", ["best.json", "last.json"])
def test_tensors_of_other_sizes_than_the_settings_are_named(tmp_path, corpora, name):
    Training(replace(SMALL, epochs=1), *corpora, tmp_path / "run").run()
    saved = load_checkpoint(tmp_path / "run" / name)
    saved.settings = replace(saved.settings, num_hiddens=saved.settings.num_hiddens + 1)
    with pytest.raises(DataError, match="tensors do not fit its settings: size mismatch for attend"):
        saved.build()
    if name == "last.json":
        with pytest.raises(DataError, match="tensors do not fit its settings: size mismatch for attend"):
            Training(SMALL, *corpora, tmp_path / "run", resume=saved)


@pytest.mark.parametrize(
    ("damage", "error", "message"),
    [
        (lambda p: p.write_text("{"), DataError, "is no checkpoint of this program"),
        (lambda p: p.write_text("{}"), DataError, "is no checkpoint of this program: 'format'"),
        (lambda p: p.write_text(p.read_text().replace('"format": 1', '"format": 2')), DataError, "has the format 2"),
        (lambda p: p.write_text(p.read_text().replace('"adam"', '"x"')), DataError, "optimizer must be one of"),
        (lambda p: p.write_text(p.read_text().replace('"<pad>"', '"x"')), DataError, "begin with <unk> and <pad>"),
        (lambda p: p.with_name("best-3.safetensors").write_bytes(b"x"), DataError, "best-3.safetensors, which"),
        (lambda p: p.with_name("best-3.safetensors").unlink(), FileNotFoundError, "best-3"),
        (lambda p: p.unlink(), FileNotFoundError, "best.json"),
    ],
)
def test_a_damaged_checkpoint_is_named(tmp_path, corpora, damage, error, message):
    Training(replace(SMALL, epochs=1), *corpora, tmp_path / "run").run()
    damage(tmp_path / "run/best.json")
    with pytest.raises(error, match=message):
        load_checkpoint(tmp_path / "run")


def test_what_can_not_be_resumed(tmp_path, corpora):
    Training(replace(SMALL, epochs=1), *corpora, tmp_path / "run").run()
    with pytest.raises(ValueError, match=r"no state to go on from: use last\.json"):
        Training(SMALL, *corpora, tmp_path / "run", resume=load_checkpoint(tmp_path / "run"))
    saved = load_checkpoint(tmp_path / "run/last.json")
    with pytest.raises(ValueError, match="was trained on 45 pairs; these 15 are others"):
        Training(SMALL, corpora[1], None, tmp_path / "run", resume=saved)
    same = corpora[0]
    for changes in ({"labels": same.labels.flip(0)}, {"words": [*same.words[1:], same.words[0]]}):
        with pytest.raises(ValueError, match="these 45 are others, or in another order, or labelled otherwise"):
            Training(SMALL, replace(same, **changes), corpora[1], tmp_path / "run", resume=saved)
    assert Training(SMALL, replace(same), corpora[1], tmp_path / "run", resume=saved).step == saved.step


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"optimizer": "sgd"}, "optimizer must be one of adam, adagrad, not 'sgd'"),
        ({"epochs": 0}, "epochs must be 1 or more"),
        ({"dropout": 1.0}, r"dropout must lie in \[0, 1\)"),
        ({"learning_rate": float("nan")}, "learning_rate must be positive"),
        ({"learning_rate": float("inf")}, "learning_rate must be positive and finite, not inf"),
        ({"max_tokens": -1}, "max_tokens must be 0 or more"),
        ({"seed": -1}, r"seed must lie between 0 and 2\^63 - 1, not -1"),
        ({"seed": 2**63}, r"seed must lie between 0 and 2\^63 - 1"),
    ],
)
def test_bad_settings(changes, message):
    with pytest.raises(ValueError, match=message):
        replace(SMALL, **changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"epochs": 1.5}, "epochs must be of type int, not float"),
        ({"batch_size": True}, "batch_size must be of type int, not bool"),
        ({"dropout": "0.2"}, "dropout must be of type float, not str"),
        ({"lower": 1}, "lower must be of type bool, not int"),
    ],
)
def test_settings_of_other_types(changes, message):
    with pytest.raises(TypeError, match=message):
        replace(SMALL, **changes)
    assert replace(SMALL, dropout=0, learning_rate=1).dropout == 0


def test_vectors_must_fit():
    with pytest.raises(ValueError, match=r"the vectors must be \(9, 8\), \(words, embed_size\), not \(9, 7\)"):
        SMALL.model(9, 3, torch.zeros(9, 7))
    vectors = torch.randn(9, 8)
    assert torch.equal(SMALL.model(9, 3, vectors).embedding.weight, vectors)


def test_no_tensorboard(tmp_path, corpora, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(ImportError, match=r'pip install "coalign\[tensorboard\]"'):
        Training(SMALL, *corpora, tmp_path / "run", tensorboard=True)


def test_evaluation_counts(corpora):
    """Against counting by hand, for a model whose answer is the premise's length modulo 3."""

    class ByLength(nn.Module):
        def forward(self, pairs):
            return nn.functional.one_hot(pairs.lengths_a.long() % 3, 3).float() * 10

    corpus = corpora[0]
    batches = SMALL.batches(corpus, SMALL.vocabulary(corpus), training=False)
    model = ByLength().train()
    found = evaluate(model, batches.epoch(), LABELS)
    assert model.training
    a, b, truth = corpus.offsets_a.diff(), corpus.offsets_b.diff(), corpus.labels.long()
    said = a % 3
    assert found.pairs == 45
    assert found.accuracy == pytest.approx(float((said == truth).float().mean()))
    assert found.loss == pytest.approx(float(nn.functional.cross_entropy(nn.functional.one_hot(said, 3) * 10.0, truth)))
    for t, name in enumerate(LABELS):
        assert found.confusion[t] == [int(((truth == t) & (said == s)).sum()) for s in range(3)]
        right = int(((truth == t) & (said == t)).sum())
        assert found.classes[name]["precision"] == pytest.approx(right / max(1, int((said == t).sum())))
        assert found.classes[name]["recall"] == pytest.approx(right / int((truth == t).sum()))
    for bounds, numbers in found.by_length.items():
        low, high = (int(part) for part in bounds.split("-")) if "-" in bounds else (41, 10**9)
        within = (a + b >= low) & (a + b <= high)
        assert numbers["pairs"] == int(within.sum())
        assert numbers["accuracy"] == pytest.approx(float((said == truth)[within].float().mean()))
    assert sum(numbers["pairs"] for numbers in found.by_length.values()) == 45
    with pytest.raises(ValueError, match="no pairs to evaluate"):
        evaluate(model, [], LABELS)


def test_a_run_without_a_whole_epoch(tmp_path):
    (tmp_path / "last.json").write_text("{}")
    with pytest.raises(FileNotFoundError, match=r"has no best.json, which the first whole epoch leaves; there is"):
        load_checkpoint(tmp_path)
