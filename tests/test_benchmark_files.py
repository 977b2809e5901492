"""Files of results: what a half-written line leaves, what is said of files that are not what they should be."""

import builtins
import shutil
import subprocess
from pathlib import Path

import pytest
import typer
from test_benchmarks import line
from typer.testing import CliRunner

from benchmarks import __main__ as command
from benchmarks import results

ROOT = Path(__file__).parents[1]
STORED = results.FOLDER / "amd-epyc-avx512"


def run(*words):
    """The command's exit status, and what it prints in one line."""
    app = typer.Typer()
    app.command()(command.main)
    done = CliRunner().invoke(app, [str(word) for word in words])
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    return done.exit_code, " ".join(done.output.replace("│", " ").split())


@pytest.fixture(autouse=True)
def measured(monkeypatch):
    """Nothing is timed: what would have been, as the names of cases, threads and files."""
    seen = []

    def each(work, name, measure, path, rounds, until):
        seen.extend((name(item), path) for item in work)
        return []

    monkeypatch.setattr(command, "_each", each)
    return seen


def test_a_half_written_line_spoils_no_other(tmp_path):
    path = tmp_path / "x.jsonl"
    results.append(path, [{"a": 1}])
    with path.open("a") as file:
        file.write('{"a": 2, "b"')
    results.append(path, [{"a": 3}])
    results.append(path, [{"a": 4}])
    assert path.read_text().splitlines() == ['{"a": 1}', '{"a": 2, "b"', '{"a": 3}', '{"a": 4}']
    with pytest.raises(results.Unreadable, match=r"x\.jsonl, line 2 is damaged"):
        results.read(path)


@pytest.mark.parametrize("text", ['{"a"', "12", "\x00\x01", "\N{LATIN SMALL LETTER E WITH ACUTE}"])
@pytest.mark.parametrize("asked", ["--report", "--markdown"])
def test_a_damaged_line_is_named(tmp_path, text, asked):
    path = tmp_path / "x.jsonl"
    results.append(path, [line("coalign", 1e-3), line("eager", 1e-3)])
    with path.open("ab") as file:
        file.write(text.encode("latin-1"))
    code, said = run(asked, "--output", path)
    assert code == 2
    assert "line 3 is damaged" in said


@pytest.mark.parametrize("name", ["model", "layers", "pipeline"])
@pytest.mark.parametrize("how", ["--report", "--compare"])
def test_results_of_another_kind_are_refused(name, how):
    path, operator = STORED / f"{name}.jsonl", STORED / "operator.jsonl"
    code, said = run("--report", "--output", path) if how == "--report" else run("--compare", operator, path)
    assert code == 2
    assert f"line 1 is of the benchmark '{name}', not 'operator'" in said
    assert run("--compare", operator, operator)[0] == 0


@pytest.mark.parametrize("kind", ["operator", "model", "layers"])
def test_every_stored_line_is_of_its_kind(kind):
    for path in results.FOLDER.glob(f"*/{kind}.jsonl"):
        assert results.read(path, kind)


@pytest.mark.parametrize("exists", [False, True], ids=["missing", "empty"])
@pytest.mark.parametrize("how", [[], ["--model"], ["--layers"]], ids=str)
def test_without_results_there_is_no_table(tmp_path, exists, how):
    path, other = tmp_path / "x.jsonl", STORED / "operator.jsonl"
    if exists:
        path.touch()
    for words in (["--markdown", "--output", path], ["--report", "--output", path], ["--compare", path, other]):
        code, said = run(*how, *words)
        assert code == 2
        assert "there are no results in" in said
        assert "****" not in said


def test_a_table_without_rows_is_none(tmp_path):
    results.append(tmp_path / "x.jsonl", [line("coalign", 1e-3)])
    code, said = run("--markdown", "--output", tmp_path / "x.jsonl")
    assert code == 2
    assert "anything to be compared with" in said


def test_files_with_nothing_in_common_are_not_compared(tmp_path):
    paths = [tmp_path / name for name in ("a.jsonl", "b.jsonl")]
    for path, case in zip(paths, ("d2l full", "stream"), strict=True):
        results.append(path, [line("coalign", 1e-3, case), line("eager", 1e-3, case)])
    code, said = run("--compare", *paths)
    assert code == 2
    assert "no case was measured in both" in said
    code, said = run("--compare", paths[0], paths[0])
    assert code == 0
    assert "factor of at least 1.15" in said


def test_pictures_need_matplotlib(tmp_path, monkeypatch):
    imported = builtins.__import__

    def without(name, *rest):
        if name.startswith("matplotlib"):
            raise ImportError(name)
        return imported(name, *rest)

    results.append(tmp_path / "x.jsonl", [line("coalign", 1e-3), line("eager", 1e-3)])
    monkeypatch.setattr(builtins, "__import__", without)
    code, said = run("--report", "--output", tmp_path / "x.jsonl")
    assert code == 1
    assert "coalign[bench]" in said


def test_only_holds_where_the_processors_cases_follow(measured, monkeypatch):
    monkeypatch.setattr(command.torch.cuda, "is_available", lambda: False)
    run("--suite", "gpu", "--only", "one pair 15")
    assert {name.rsplit(", ", 1)[0] for name, _ in measured} == {"one pair 15 x 8"}
    code, said = run("--suite", "gpu", "--only", "ESIM")
    assert code == 2
    assert "no case's name holds 'ESIM'" in said


def test_layers_are_kept_with_the_processors_results(measured, monkeypatch):
    monkeypatch.setattr(command.torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(results, "device", lambda kind: f"a {kind}")
    code, said = run("--layers", "--only", "ESIM")
    assert code == 0
    assert {path for _, path in measured} == {results.FOLDER / "a-cpu" / "layers.jsonl"}
    assert "nothing added to" in said


def test_one_thread_is_measured_where_two_were(measured, monkeypatch, tmp_path):
    monkeypatch.setattr(command.torch.cuda, "is_available", lambda: False)
    commit = results.environment("cpu")["commit"]
    done = [{**line("packed", 1e-3, case.name), "peer": False, "commit": commit} for case in command.MODEL_CASES["cpu"]]
    for found in done:
        del found["hot"]
    results.append(tmp_path / "x.jsonl", done)
    words = ("--model", "--resume", "--output", tmp_path / "x.jsonl", "--threads")
    run(*words, 2)
    assert not measured
    run(*words, 1)
    assert len(measured) == len(done)


def test_sources_are_dirty_and_results_are_not(tmp_path, monkeypatch):
    monkeypatch.setattr(results, "FOLDER", tmp_path / "benchmarks" / "results")
    monkeypatch.setattr(results, "_git", results._git.__wrapped__)
    for name in ("benchmarks/results", "csrc"):
        (tmp_path / name).mkdir(parents=True)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert results._dirty() is None
    subprocess.run(["git", "init", "--quiet", tmp_path], check=True)
    assert results._dirty() is False
    results.append(results.FOLDER / "x.jsonl", [{"a": 1}])
    assert results._dirty() is False
    for name in ("csrc/new.h", "benchmarks/new.py"):
        (tmp_path / name).touch()
        assert results._dirty() is True
        (tmp_path / name).unlink()
    monkeypatch.setenv("PATH", str(tmp_path))
    assert results._dirty() is None


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
@pytest.mark.parametrize(
    ("arguments", "shown"),
    [
        ("", "--report"),
        ("--model", "--report --model"),
        ("--layers", "--report --layers"),
        ("--output F --only packed", "--report --output F --only packed"),
        ("--help", None),
        ("--compare A B", None),
        ("--profile", None),
    ],
)
def test_make_shows_what_it_measured(arguments, shown):
    done = subprocess.run(
        ["make", "--dry-run", "bench", f"ARGS={arguments}"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    found = [
        words.split("-m benchmarks", 1)[1].strip() for words in done.stdout.splitlines() if "-m benchmarks" in words
    ]
    assert found == [arguments, shown][: 1 + (shown is not None)]
