"""Files that take their place when they are whole: whatever they are called."""

import errno
import os

import pytest
from coalign.model.atomic import replacing
from coalign.model.nli import load_checkpoint, save_checkpoint
from test_prediction import made


@pytest.mark.parametrize("name", ["o**.jsonl", "a[b]?.jsonl"])
def test_names_that_are_patterns(tmp_path, name):
    """An hour after its process died, an unfinished file goes; one of a name that the pattern would match stays."""
    old, other = tmp_path / f".{name}.x.unfinished", tmp_path / ".ab1.jsonl.x.unfinished"
    for path in (old, other):
        path.write_text("half")
        os.utime(path, (0, 0))
    with replacing(tmp_path / name) as unfinished:
        unfinished.write_text("whole")
    assert (tmp_path / name).read_text() == "whole"
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([name, other.name])


@pytest.mark.parametrize("mode", [None, 0o600, 0o664], ids=["new", "private", "shared"])
def test_permissions_are_those_of_the_file_that_is_replaced(tmp_path, mode):
    path, before = tmp_path / "x", os.umask(0o022)
    try:
        if mode is not None:
            path.touch()
            path.chmod(mode)
        with replacing(path) as unfinished:
            unfinished.write_text("whole")
    finally:
        os.umask(before)
    assert path.stat().st_mode & 0o777 == (0o644 if mode is None else mode)


def test_a_checkpoint_whose_name_is_a_pattern(tmp_path):
    checkpoint, path = made(), tmp_path / "b**[1].json"
    for checkpoint.step in (1, 2):
        save_checkpoint(checkpoint, path)
    assert load_checkpoint(path).step == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["b**[1]-2.safetensors", "b**[1].json"]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EFBIG])
def test_a_file_that_there_is_no_room_for_is_named_and_leaves_the_previous_one(tmp_path, number):
    path = tmp_path / "answers"
    path.write_text("before")
    with pytest.raises(OSError, match="answers") as raised, replacing(path):
        raise OSError(number, os.strerror(number))  # as write() does, without a name
    assert raised.value.errno == number
    assert raised.value.filename == str(path)
    assert [(p.name, p.read_text()) for p in tmp_path.iterdir()] == [("answers", "before")]


def test_another_file_s_error_in_the_block_stays_its_own(tmp_path):
    with pytest.raises(BrokenPipeError) as raised, replacing(tmp_path / "answers"):
        raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))
    assert raised.value.filename is None
