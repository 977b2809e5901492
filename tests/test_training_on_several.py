"""Training by several processes, as `torchrun` starts them: two on this machine's processor."""

import csv
import multiprocessing
import os
import random
import signal
import socket
import subprocess
import sys
import time
import weakref
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from coalign.model.atomic import claimed
from coalign.model.nli import Ranks, Training, TrainingError, load_checkpoint
from coalign.model.nli.ranks import joined
from test_training import SMALL, corpora, without_seconds  # noqa: F401  (a fixture)
from torch import distributed
from torch.distributed import destroy_process_group
from torch.nn.parallel import DistributedDataParallel

from coalign.cli import app

# 45 pairs in batches of 11: the fifth has one pair, and the second rank none of it
SETTINGS = replace(SMALL, batch_size=11, dropout=0.0)
OPTIONS = ("--embed-size=8", "--num-hiddens=12", "--min-freq=1", "--batch-size=11", "--dropout=0", "--device=cpu")


def arguments(folder, *options, learning_rate="0.01"):
    own = () if "--resume" in options else (*OPTIONS, f"--learning-rate={learning_rate}")
    data = (str(folder / "training.jsonl"), f"--validation={folder / 'validation.jsonl'}")
    return ["train", *data, f"--out={folder / 'run'}", *options, *own]


@contextmanager
def launched(words):
    """A command by two processes of torchrun, in a group of their own, which hears Ctrl-C together."""
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "coalign"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "200"}
    child = subprocess.Popen(
        [*torchrun, *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        start_new_session=True,
    )
    try:
        yield child
    finally:
        with suppress(ProcessLookupError):  # the launcher may have gone before its processes
            os.killpg(child.pid, signal.SIGKILL)
        child.communicate()


def one_rank(rank, port, words, told):
    """A command as a process that torchrun started."""
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "COLUMNS": "200"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    with Path(told).open("w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
        app(words)


def free_port():
    """A port below those that the system itself hands out: one of these might be taken before rank 0 listens, by a rank
    that asks for it, which would then talk to itself."""
    for port in random.Random().sample(range(12_000, 30_000), 100):
        with socket.socket() as free, suppress(OSError):
            free.bind(("127.0.0.1", port))
            return port
    raise OSError("there is no free port")


def together(folder, words):
    """What torchrun would do, from a process that has imported everything. Exit codes, and what each rank told."""
    server = multiprocessing.get_context("forkserver")
    server.set_forkserver_preload(["coalign.cli", "torch._dynamo"])
    port = free_port()
    told = [folder / f"rank{rank}.txt" for rank in range(2)]
    ranks = [server.Process(target=one_rank, args=(rank, port, words, told[rank])) for rank in range(2)]
    for process in ranks:
        process.start()
    try:
        for process in ranks:
            process.join(timeout=300)
    finally:
        for process in ranks:
            process.kill()
    return [process.exitcode for process in ranks], [path.read_text() for path in told]


def curve(run):
    with (run / "log.csv").open() as log:
        return [
            {name: float(value) for name, value in line.items() if name != "seconds"} for line in csv.DictReader(log)
        ]


def test_two_processes_have_one_processs_curve_and_stop_and_go_on_together(tmp_path, corpora):  # noqa: F811
    run = tmp_path / "run"
    with launched(arguments(tmp_path, "--epochs=100000")) as child:
        until = time.monotonic() + 300
        while not ((run / "log.csv").exists() and len(curve(run)) >= 2):
            assert child.poll() is None, child.communicate()
            assert time.monotonic() < until
            time.sleep(0.02)
        os.killpg(child.pid, signal.SIGINT)
        told = child.communicate(timeout=300)[1]
        assert child.returncode != 0
    stopped = load_checkpoint(run / "last.json")
    assert told.count(f"stopped after step {stopped.step}; go on with --resume") == 1
    assert len(stopped.history) >= 2
    epochs = len(stopped.history) + 2
    codes, told = together(tmp_path, arguments(tmp_path, "--resume", f"--epochs={epochs}"))
    assert codes == [0, 0], told
    assert "checkpoints in" in told[0]
    assert told[1] == ""
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
    codes, told = together(tmp_path, arguments(tmp_path, learning_rate="1e30"))
    assert codes == [1, 1]
    for words in told:
        assert "of step 2 (epoch 1) is nan; the state is saved in" in words
    assert load_checkpoint(tmp_path / "run/failed.json").step == 1


@pytest.mark.parametrize("learning_rate", [0.01, 1e30], ids=["to its end", "with an error"])
def test_the_process_group_outlives_what_is_parallel(monkeypatch, tmp_path, corpora, learning_rate):  # noqa: F811
    """Freed after the group's other owners, the wrapper waits forever for the group's threads: one time in thirty."""
    here = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1"}
    for name, value in (here | {"MASTER_PORT": str(free_port())}).items():
        monkeypatch.setenv(name, value)
    wrappers, ended = [], []

    class Wrapper(DistributedDataParallel):
        def __init__(self, *arguments, **options):
            super().__init__(*arguments, **options)
            wrappers.append(weakref.ref(self))

    def destroy():
        ended.append([wrapper() for wrapper in wrappers])
        destroy_process_group()

    monkeypatch.setattr(torch.nn.parallel, "DistributedDataParallel", Wrapper)
    monkeypatch.setattr(distributed, "destroy_process_group", destroy)
    settings = replace(SETTINGS, epochs=2, learning_rate=learning_rate)
    fails = pytest.raises(TrainingError) if learning_rate > 1 else nullcontext()
    with fails, joined(torch.device("cpu")):
        run = Training(settings, *corpora, tmp_path / "run", ranks=Ranks(0, 2))
        run.run()
    assert run.step == (1 if learning_rate > 1 else 10)
    assert ended == [[None]]


@pytest.mark.parametrize("failing", ["reading", "making the folder", "claiming it", "saving", "writing the log"])
def test_where_the_first_process_fails_the_other_one_ends_without_a_word(tmp_path, corpora, failing):  # noqa: F811
    run, options, message = tmp_path / "run", (), "another run is at work in this folder"
    if failing == "reading":
        options, message = ("--vectors=nonesuch.txt",), "nonesuch.txt"
    if failing == "making the folder":
        run.write_text("a file")
        message = "File exists"
    else:
        run.mkdir()
    if failing in {"saving", "writing the log"}:
        message = "best.json" if failing == "saving" else "log.csv"
        (run / message).mkdir()
    with claimed(run) if failing == "claiming it" else nullcontext():
        codes, told = together(tmp_path, arguments(tmp_path, *options))
    assert codes == [1, 1]
    assert message in told[0]
    assert "Traceback" not in told[0]
    assert told[1] == ""


def test_shares_of_a_batch():
    rows = torch.arange(7)
    shares = [Ranks(rank, 3).share(rows).tolist() for rank in range(3)]
    assert shares == [[0, 3, 6], [1, 4], [2, 5]]
    assert [[*Ranks(rank, 3).every(range(4))] for rank in range(3)] == [[0, 3], [1], [2]]
    assert torch.equal(Ranks().share(rows), rows)
