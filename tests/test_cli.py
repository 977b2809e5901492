"""The command line, as a user runs it."""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from test_benchmarks import line
from typer.testing import CliRunner

import coalign
from benchmarks import results
from coalign import cli, demo, kernel_table
from coalign.cli import app
from coalign.lexical import align_words, character_vectors


@pytest.fixture
def run():
    runner = CliRunner()
    return lambda *words: runner.invoke(app, [str(word) for word in words])


def process(*words, **environment):
    return subprocess.run(
        [sys.executable, "-m", "coalign", *words],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "COLUMNS": "120", **environment},
    )


def test_demo_checks_every_tensor_on_both_backends():
    shown = process("demo", "--pairs", "24", "--batch-size", "12")
    assert shown.returncode == 0, shown.stderr
    assert "24 pairs of the embedded set" in shown.stdout
    assert "gradient of attend.f.1.weight" in shown.stdout
    assert "forward + backward" in shown.stdout
    assert "rows sum to 100" in shown.stdout
    assert "TOO LARGE" not in shown.stdout
    if not torch.cuda.is_available():
        assert "ran on the backend native" in shown.stdout
        assert "triton (interpreted)" in shown.stdout


def test_demo_as_json(run):
    found = json.loads(run("demo", "--json", "--pairs", 9, "--device", "cpu", "--rounds", 1).stdout)
    assert found["passed"]
    assert found["pairs"] == 9
    assert {"beta", "alpha", "class scores", "gradient of embedding.weight"} <= found["errors"].keys()
    assert all(0 <= error <= demo.BUDGET for error in found["errors"].values())


def test_demo_fails_when_an_error_is_too_large(run, monkeypatch):
    """A wrong operator does not pass: here β is scaled by 1 %."""
    from coalign.model import attend

    def wrong(*arguments, **options):
        found = coalign.soft_align(*arguments, **options)
        return found._replace(beta=1.01 * found.beta)

    monkeypatch.setattr(attend, "soft_align", wrong)
    result = run("demo", "--json", "--pairs", 9, "--device", "cpu", "--rounds", 1)
    assert result.exit_code == 1
    assert not json.loads(result.stdout)["passed"]


@pytest.mark.parametrize(
    ("name", "factor"),
    [("beta", 1 + 2 * demo.BUDGET), ("class scores", torch.nan), ("gradient of embedding.weight", 1 + 2 * demo.BUDGET)],
)
def test_demo_fails_when_one_tensor_alone_is_wrong(run, monkeypatch, name, factor):
    step = demo._step

    def spoilt(model, batch):
        found = step(model, batch)
        return found | {name: found[name] * factor} if model.backend != "reference" else found

    monkeypatch.setattr(demo, "_step", spoilt)
    monkeypatch.setattr(cli, "_interpreted", lambda *_: None)
    words = ("demo", "--pairs", 9, "--device", "cpu", "--rounds", 1)
    result = run(*words, "--json")
    found = json.loads(result.stdout)
    assert result.exit_code == 1
    assert not found["passed"]
    assert found["torn"] == 0
    shown = run(*words)
    assert shown.exit_code == 1
    assert "an error exceeds" in shown.stderr


@pytest.mark.parametrize(("torn", "status"), [((), 0), ((6,), 0), ((6, 3), 1)], ids=["none", "one", "all"])
def test_demo_compares_gradients_where_relus_agree(run, monkeypatch, torn, status):
    """In batches of so many pairs one does not. Gradients of no batch at all are nothing that passes."""
    step = demo._step

    def tearing(model, batch):
        found, fast = step(model, batch), model.backend != "reference"
        if len(batch.labels) not in torn:
            return found
        relu = next(layer for layer in model.modules() if isinstance(layer, torch.nn.ReLU))
        relu(torch.tensor(-1.0 if fast else 1.0))
        return {part: 2 * t if fast and part.startswith("gradient") else t for part, t in found.items()}

    monkeypatch.setattr(demo, "_step", tearing)
    result = run("demo", "--json", "--pairs", 9, "--batch-size", 6, "--device", "cpu", "--rounds", 1)
    found = json.loads(result.stdout)
    assert found["torn"] == len(torn)
    assert max(found["errors"].values()) <= demo.BUDGET
    assert result.exit_code == status


def test_demo_on_a_file(run, tmp_path):
    path = tmp_path / "pairs.jsonl"
    pair = {"gold_label": "neutral", "sentence1": "Two dogs play .", "sentence2": "Dogs play ball ."}
    unlabelled = pair | {"gold_label": "-"}
    path.write_text("\n".join(map(json.dumps, [pair, unlabelled, pair])))
    result = run("demo", "--json", "--data", path, "--device", "cpu", "--rounds", 1)
    assert json.loads(result.stdout)["pairs"] == 2
    assert "left out 1 pairs without a label" in result.stderr


@pytest.mark.parametrize(
    ("premises", "drawn"), [([""], "No pair has words on both sides"), (["", "cats"], "cats")], ids=["all", "some"]
)
def test_demo_on_empty_sentences(run, monkeypatch, tmp_path, premises, drawn):
    monkeypatch.setattr(cli, "_interpreted", lambda *_: None)
    path = tmp_path / "pairs.jsonl"
    pairs = [{"gold_label": "neutral", "sentence1": premise, "sentence2": "a dog"} for premise in premises]
    path.write_text("\n".join(map(json.dumps, pairs)))
    result = run("demo", "--data", path, "--device", "cpu", "--rounds", 1)
    assert result.exit_code == 0, result.output
    assert drawn in result.stdout.partition("time a batch")[2]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("demo", "--data", "nonesuch.jsonl"), "nonesuch.jsonl"),
        (("demo", "--backend", "nonesuch"), "'nonesuch' is no backend"),
        (("demo", "--backend", "triton", "--device", "cpu"), "Triton runs on GPU tensors"),
        (("demo", "--device", "nonesuch"), "--device nonesuch"),
        (("align", "", "b"), "the premise has no words"),
        (("align", "a", "b", "--scale", "inf"), "scale must be finite"),
        (("align", "a", "b a", "--scale", "1e300"), "the scale 1e+300 is too large"),
        (("align", "", "b", "--plot", "x.nonesuch"), "x.nonesuch: .nonesuch is no format of pictures"),
        (("align", "", "b", "--plot", "nonesuch"), "nonesuch has no ending that names a format"),
        (("align", "", "b", "--plot", "nonesuch/x.png"), "nonesuch/x.png"),
        (("kernels", "--arch", "sm_1"), "sm_1 is none of sm_80"),
        (("kernels", "--only", "nonesuch"), "no kernel for sm_90 has 'nonesuch' in its name or arithmetic"),
    ],
)
def test_bad_input_is_named_and_nothing_runs(run, words, message):
    result = run(*words)
    assert result.exit_code == 1
    assert message in result.stderr
    assert result.stdout == ""
    assert "Traceback" not in result.output


def test_a_malformed_line_is_named(run, tmp_path):
    path = tmp_path / "pairs.jsonl"
    path.write_text("{\n")
    result = run("demo", "--data", path)
    assert result.exit_code == 1
    assert "line 1: not JSON" in result.stderr


def test_align_draws_words_aligned_to_words(run, tmp_path):
    plot = tmp_path / "alignment.png"
    result = run("align", "Two dogs run", "Some dogs are running", "--plot", plot)
    assert result.exit_code == 0, result.output
    assert "dogs" in result.stdout
    assert plot.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("scale", [8.0, 1e5, 1e38])
def test_similar_words_align(scale):
    alignment = align_words(["two", "dogs", "run"], ["the", "dog", "is", "running"], scale)
    assert alignment.p.argmax(1)[1:].tolist() == [1, 3]
    assert alignment.q.argmax(0)[[1, 3]].tolist() == [1, 2]
    torch.testing.assert_close(alignment.p.sum(1), torch.ones(3))
    torch.testing.assert_close(alignment.q.sum(0), torch.ones(4))


def test_character_vectors_have_length_one():
    torch.testing.assert_close(character_vectors(["a", "Dogs", "…"]).norm(dim=-1), torch.ones(3))


def test_doctor(run):
    found = json.loads(run("doctor", "--json").stdout)
    assert found["versions"]["coalign"] == coalign.__version__
    assert found["versions"]["torch"] == torch.__version__
    assert found["backends"].keys() == set(coalign.BACKENDS)
    assert found["backends"]["reference"]["cpu"] == "ready"
    assert found["backends"]["native"]["cpu"] == "ready"
    assert found["backends"]["triton"]["cpu"].startswith("off: Triton")
    assert Path(found["extensions"]["C++"]).parent == Path(found["extensions"]["cache"])
    assert Path(found["extensions"]["C++"]).exists()
    assert {"CXX", "COALIGN_CACHE", "COALIGN_NATIVE_FLAGS", "CUDA_HOME"} <= found["environment"].keys()
    shown = run("doctor").stdout
    assert "reference" in shown
    assert "COALIGN_BACKEND" in shown


def test_doctor_says_that_every_call_fails(run, monkeypatch):
    monkeypatch.setenv("COALIGN_BACKEND", "cuda")
    assert "every call fails: COALIGN_BACKEND='cuda' is no backend" in " ".join(run("doctor").stdout.split())


def test_tables_in_a_pipe_are_whole(tmp_path):
    """Names and columns are not shortened to a terminal's width where there is no terminal."""
    environment = {name: value for name, value in os.environ.items() if name != "COLUMNS"}
    words = [sys.executable, "-m", "coalign", "align", "two dogs run across a wide green field", "animals " * 30]
    shown = subprocess.run(words, capture_output=True, text=True, check=True, env=environment).stdout
    assert max(line.count("animals") for line in shown.splitlines()) == 30


def test_bench_takes_paths_from_where_it_is_called(tmp_path):
    stored = results.FOLDER / "amd-epyc-family-23-model-1-avx2/model.jsonl"
    (tmp_path / "here.jsonl").write_bytes(stored.read_bytes())
    words = [sys.executable, "-m", "coalign", "bench", "--markdown", "--model", "--output", "here.jsonl"]
    shown = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert shown.returncode == 0, shown.stderr
    assert "| inference | frozen |" in shown.stdout


def test_bench_ends_as_the_benchmarks_do(run, tmp_path):
    for name, seconds in (("before", 1e-3), ("after", 2e-3)):
        results.append(tmp_path / name, [line("coalign", seconds), line("eager", 3e-3)])
    assert run("bench", "--compare", tmp_path / "before", tmp_path / "after").exit_code == 1
    assert run("bench", "--suite", "nonesuch").exit_code == 2


def test_bench_calls_itself_as_it_was_called(capfd, run):
    assert run("bench", "--help").exit_code == 0
    assert "Usage: coalign bench [OPTIONS]" in capfd.readouterr().out


@pytest.mark.parametrize(("found", "status"), [(([], []), 0), (([], ["it spills"]), 1)], ids=["sound", "faulty"])
def test_kernels_fails_where_one_of_them_is_faulty(run, monkeypatch, found, status):
    cases = [SimpleNamespace(name=f"kernel {k}", arithmetic="half") for k in range(len(found))]

    def compiled(case, architecture):
        numbers = dict.fromkeys(("warps", "registers", "spilled", "shared", "matrix", "instructions", "occupancy"), 1)
        faults = found[cases.index(case)]
        return SimpleNamespace(case=case, architecture=architecture, faults=lambda: faults, **numbers)

    sm_90 = SimpleNamespace(name="sm_90")
    compiler = SimpleNamespace(ARCHITECTURES={"sm_90": sm_90}, cases=lambda _: cases, compile_case=compiled)
    monkeypatch.setattr(kernel_table, "_compilers", lambda: ([compiler], []))
    shown = run("kernels")
    assert shown.exit_code == status
    assert ("kernel 1, half, sm_90: it spills" in shown.stdout) == bool(status)
    assert run("kernels", "--json").exit_code == status
    monkeypatch.setattr(kernel_table, "_compilers", lambda: ([], ["no Triton", "no nvcc"]))
    shown = run("kernels")
    assert shown.exit_code == 1
    assert "no Triton; no nvcc" in shown.stderr


def test_kernels_lists_what_was_compiled(run):
    pytest.importorskip("triton")
    rows = json.loads(run("kernels", "--only", "tile_forward <=16 half", "--json").stdout)
    assert [(row["kernel"], row["architecture"], row["spilled"]) for row in rows] == [("tile_forward <=16", "sm_90", 0)]
    assert "regs" in run("kernels", "--only", "tile_forward <=16 half").stdout


def test_version_and_help():
    assert process("--version").stdout.strip() == coalign.__version__
    assert "demo" in process("--help").stdout


@pytest.mark.parametrize("words", [("doctor",), ("doctor", "--json"), ("--version",), ("--help",)], ids=" ".join)
def test_an_output_that_is_full_is_complained_about(words):
    if not Path("/dev/full").exists():
        pytest.skip("there is no device that is always full")
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "coalign", *words], stdout=full, stderr=subprocess.PIPE, text=True, check=False
        )
    assert done.returncode == 1
    assert done.stderr == "error: the output can't be written: No space left on device\n"


def test_a_reader_that_has_enough_is_not_told_so():
    command = f"{sys.executable} -m coalign doctor --json | head -1; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)
    assert done.stdout == "{\n"
    assert done.stderr == ""


def test_complaints_that_nobody_can_be_told_cost_nothing():
    if not Path("/dev/full").exists():
        pytest.skip("there is no device that is always full")
    with open("/dev/full", "w") as full:
        command = [sys.executable, "-m", "coalign", "align", "a dog", "dogs", "--backend", "none"]
        failed = subprocess.run(command, stdout=subprocess.PIPE, stderr=full, text=True, check=False)
        done = subprocess.run(command[:-2], stdout=subprocess.PIPE, stderr=full, text=True, check=False)
    assert failed.returncode == 1
    assert done.returncode == 0
    assert "dogs" in done.stdout


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_an_output_whose_encoding_lacks_characters(encoding):
    command = [sys.executable, "-m", "coalign", "align", "naïve ‖ …", "dogs"]
    environment = os.environ | {"PYTHONIOENCODING": encoding}
    done = subprocess.run(command, capture_output=True, encoding=encoding, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    assert r"\u2016" in done.stdout
