"""Training by several processes, as `torchrun` starts them: two on this machine's processor."""

import csv
import os
import signal
import subprocess
import sys
import time
from contextlib import contextmanager, suppress
from dataclasses import replace

import pytest
import torch
from coalign.model.nli import Ranks, Training, load_checkpoint
from test_training import SMALL, corpora, without_seconds  # noqa: F401  (a fixture)

# 45 pairs in batches of 11: the fifth has one pair, and the second rank none of it
SETTINGS = replace(SMALL, batch_size=11, dropout=0.0)
OPTIONS = ("--embed-size=8", "--num-hiddens=12", "--min-freq=1", "--batch-size=11", "--dropout=0", "--device=cpu")


@contextmanager
def launched(folder, *options, learning_rate="0.01"):
    """`coalign train` by two processes, in a group of their own, which hears Ctrl-C together."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "coalign"]
    command += ["train", str(folder / "training.jsonl"), f"--validation={folder / 'validation.jsonl'}"]
    command += [f"--out={folder / 'run'}", *options]
    if "--resume" not in options:
        command += [*OPTIONS, f"--learning-rate={learning_rate}"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "200"}
    child = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment, start_new_session=True
    )
    try:
        yield child
    finally:
        with suppress(ProcessLookupError):  # the launcher may have gone before its processes
            os.killpg(child.pid, signal.SIGKILL)
        child.communicate()


def curve(run):
    with (run / "log.csv").open() as log:
        return [
            {name: float(value) for name, value in line.items() if name != "seconds"} for line in csv.DictReader(log)
        ]


def test_two_processes_have_one_processs_curve_and_stop_and_go_on_together(tmp_path, corpora):  # noqa: F811
    run = tmp_path / "run"
    with launched(tmp_path, "--epochs=100000") as child:
        until = time.monotonic() + 120
        while not ((run / "log.csv").exists() and len(curve(run)) >= 2):
            assert child.poll() is None, child.communicate()
            assert time.monotonic() < until
            time.sleep(0.02)
        os.killpg(child.pid, signal.SIGINT)
        told = child.communicate(timeout=60)[1]
        assert child.returncode != 0
    stopped = load_checkpoint(run / "last.json")
    assert told.count(f"stopped after step {stopped.step}; go on with --resume") == 1
    assert len(stopped.history) >= 2
    epochs = len(stopped.history) + 2
    with launched(tmp_path, "--resume", f"--epochs={epochs}") as child:
        said, told = child.communicate(timeout=120)
        assert child.returncode == 0, told
    assert said.count("checkpoints in") == 1
    alone = Training(replace(SETTINGS, epochs=epochs), *corpora, tmp_path / "alone")
    alone.run()
    assert len(alone.history) == epochs
    for found, expected in zip(curve(run), without_seconds(alone.history), strict=True):
        assert found == pytest.approx(expected, rel=1e-5)
    saved = load_checkpoint(run / "last.json")
    for name, parameter in alone.model.state_dict().items():
        assert (saved.model[name] - parameter).norm() <= 1e-4 * parameter.norm(), name
    assert not [*run.glob(".*.unfinished")]


def test_a_loss_that_is_not_finite_stops_both(tmp_path, corpora):  # noqa: F811
    with launched(tmp_path, learning_rate="1e30") as child:
        told = child.communicate(timeout=120)[1]
    assert child.returncode == 1
    assert "of step 2 (epoch 1) is nan; the state is saved in" in told
    assert load_checkpoint(tmp_path / "run/failed.json").step == 1


def test_shares_of_a_batch():
    rows = torch.arange(7)
    shares = [Ranks(rank, 3).share(rows).tolist() for rank in range(3)]
    assert shares == [[0, 3, 6], [1, 4], [2, 5]]
    assert [[*Ranks(rank, 3).every(range(4))] for rank in range(3)] == [[0, 3], [1], [2]]
    assert Ranks().share(rows) is not None
    assert torch.equal(Ranks().share(rows), rows)
