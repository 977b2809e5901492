"""The benchmarks of the whole model: the same pairs for everyone, wrong contenders refused, tables from records."""

import io
import json
import re
from pathlib import Path

import pytest
import torch
import typer
from coalign.model.nli import PRESETS, load_corpus
from rich.console import Console
from typer.testing import CliRunner

from benchmarks import measure, model_cases, report, results, trained, whole_model
from benchmarks.__main__ import main as benchmark


@pytest.fixture
def small(monkeypatch):
    few = [case._replace(pairs=min(case.pairs, 6)) for case in model_cases.CASES["cpu"]]
    monkeypatch.setitem(model_cases.CASES, "cpu", few)
    monkeypatch.setattr(model_cases, "VOCABULARY", 50)
    monkeypatch.setattr(whole_model, "Book", lambda: model_cases.Book(50, 8, 12))


def test_a_batch_has_the_same_pairs_in_every_form(small):
    batch = model_cases.make_batch(40, seed=0)
    for padded, longest, ids, offsets in zip(
        batch.to_fifty,
        batch.to_longest,
        (batch.packed.ids_a, batch.packed.ids_b),
        (batch.packed.offsets_a, batch.packed.offsets_b),
        strict=True,
    ):
        assert padded.shape == (40, 50)
        assert longest.shape[1] == int(offsets.diff().max())
        assert torch.equal(padded[padded != model_cases.PAD], ids)
        assert torch.equal(longest[longest != model_cases.PAD], ids)
        assert ids.min() >= 2
        assert ids.max() < 50


@pytest.mark.parametrize("name", [case.name for case in model_cases.CASES["cpu"]])
def test_contenders_are_timed_and_tabled(small, name):
    rounds = []
    case = next(case for case in model_cases.CASES["cpu"] if case.name == name)
    lines = whole_model.run(case, 2, torch.get_num_threads(), lambda: rounds.append(1), compiled=False)
    assert len(rounds) == 2
    names = [line["contender"] for line in lines]
    assert names[0] == model_cases.BASELINE
    assert len(names) >= 4
    targets = {contender for of, contender in model_cases.TARGETS["cpu"] if of == name}
    assert targets <= set(names)
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(whole_model.table(lines))
    text = console.export_text()
    assert all(name in text for name in names)
    assert text.count("met") + text.count("missed") == len(targets)


@pytest.mark.gpu
@pytest.mark.parametrize("graph", [False, True], ids=["calls", "graph"])
@pytest.mark.parametrize("case", [model_cases.ModelCase("few", 6), model_cases.ModelCase("step", 6, trains=True)])
def test_contenders_on_a_gpu(small, case, graph):
    lines = whole_model.run(case, 2, 1, compiled=False, device="cuda", graph=graph)
    own = {line["contender"]: line for line in lines if not line["peer"] and "autocast" not in line["contender"]}
    assert not [name for name, line in own.items() if "absent" in line]
    text = whole_model.markdown(lines)
    assert all(name in text for name in own)


def test_a_wrong_contender_is_refused(small):
    torch.manual_seed(0)
    book, batch = model_cases.Book(50, 8, 12).eval(), model_cases.make_batch(6, seed=0)
    found = model_cases.contenders(model_cases.CASES["cpu"][0], book, compiled=False)
    whole_model.check(found, book, batch)
    with torch.no_grad():
        found["frozen"].model.output_bias.add_(1)
    with pytest.raises(measure.Wrong, match="frozen's scores are off by"):
        whole_model.check(found, book, batch)


def test_the_profile_names_the_kernels(small):
    text = whole_model.profile(torch.get_num_threads(), steps=1, operators=None)
    assert "coalign_native::mlp" in text
    assert re.search(r"coalign_native::(plain_)?forward", text)


@pytest.fixture(scope="module")
def pairs_file(tmp_path_factory):
    words = ["a", "dog", "runs", "two", "cats", "sleep", "outside"]
    lines = [
        {"gold_label": label, "sentence1": " ".join(words[k % 5 :]), "sentence2": " ".join(words[: 1 + k % 7])}
        for k, label in enumerate(["entailment", "contradiction", "neutral"] * 10)
    ]
    path = tmp_path_factory.mktemp("pairs") / "pairs.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def test_trained_weights_and_their_sentences(pairs_file):
    corpus, (case,) = load_corpus(pairs_file), trained.cases([model_cases.ModelCase("inference", 7)])
    subject = trained.Trained(corpus, [case], epochs=2)
    book, batches, about = subject(case)
    assert about == "2 epochs of 30 pairs, 9 words"
    torch.manual_seed(0)
    untrained = PRESETS["d2l"].model(9).state_dict()
    assert book.state_dict().keys() == untrained.keys()
    assert not any(torch.equal(untrained[name], found) for name, found in book.state_dict().items())
    assert [len(batch.packed) for batch in batches] == [len(batch.labels) for batch in batches] == [7] * 4
    line = whole_model.run(case, 1, torch.get_num_threads(), compiled=False, subject=subject)[0]
    assert (line["case"], line["weights"]) == ("inference, trained", about)


def test_a_file_to_train_on_that_does_not_serve_is_refused(pairs_file, tmp_path):
    command = typer.Typer()
    command.command()(benchmark)

    def said(*arguments):
        found = CliRunner().invoke(command, ["--output", str(tmp_path / "found"), *map(str, arguments)])
        assert found.exit_code == 2
        return " ".join(re.sub("[│╭╮╰╯─]", " ", found.output).split())

    assert "30 pairs are too few: 1,024 are measured" in said("--trained-on", pairs_file)
    assert "No such file" in said("--trained-on", tmp_path / "nowhere.jsonl")
    assert not (tmp_path / "found").exists()


def made(case, contender, seconds, **changes):
    peer = contender == model_cases.BASELINE
    about = {"case": case, "contender": contender, "peer": peer, "p50": seconds, "size": "256 pairs of 23.6 tokens"}
    return {**about, "kind": "cpu", "graph": False, "threads": 2, "device": "a processor", "commit": "c", **changes}


def test_results_with_other_threads_have_rows_of_their_own():
    two = [made("inference", model_cases.BASELINE, 8e-3), made("inference", "packed", 1e-3)]
    one = [made("inference", model_cases.BASELINE, 9e-3, threads=1), made("inference", "packed", 3e-3, threads=1)]
    rows = [(row[0], row[1], row[4]) for row in whole_model._rows([*two, *one])]
    assert rows[1::2] == [("inference, 2 threads", "packed", "8.00"), ("inference, 1 thread", "packed", "3.00")]
    assert {row[0] for row in whole_model._rows(two)} == {"inference"}
    assert results.model_keys(two) != results.model_keys(one)


def of_headline(seconds, weights="", **changes):
    """Results for it, of a baseline that takes so long where all others take a second."""
    names = {}
    for case, name in whole_model.IN_HEADLINE:
        names.setdefault(case, [model_cases.BASELINE]).append(name)
    return [
        made(f"{case}{weights}", name, seconds if name == model_cases.BASELINE else 1.0, **changes)
        for case in names
        for name in names[case]
    ]


def test_the_headline_is_of_one_number_of_threads():
    some = [found for found in of_headline(9.0, threads=4) if found["case"] == "inference"]
    rows = whole_model.headline([*of_headline(6.0), *of_headline(7.0, threads=1), *some])
    assert rows == ["| a processor | 6.0 | 6.0 | 6.0 | 6.0 | 6.0 |"]


def test_trained_weights_have_a_headline_of_their_own():
    rows = whole_model.headline([*of_headline(6.0), *of_headline(8.0, ", trained")])
    assert rows == [f"| a processor |{' 6.0 |' * 5}", f"| a processor, trained |{' 8.0 |' * 5}"]
    assert len(whole_model.headline([*of_headline(6.0), *of_headline(8.0, ", trained")[:3]])) == 1


@pytest.mark.parametrize("path", sorted(results.FOLDER.glob("*/model.jsonl")), ids=lambda path: path.parent.name)
def test_readme_shows_the_stored_results(path):
    """Every device's table there or in the page about performance; every processor's headline there."""
    readme, page = ((Path(__file__).parents[1] / name).read_text() for name in ("README.md", "docs/performance.md"))
    lines = results.read(path)
    shown = f"{report.heading(lines)}:\n\n{whole_model.markdown(lines)}"
    assert shown in readme or shown in page
    if lines[0]["kind"] == "cpu":
        assert whole_model.headline(lines)
        assert set(whole_model.headline(lines)) <= set(readme.splitlines())
