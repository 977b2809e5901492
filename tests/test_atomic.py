"""Files that take their place when they are whole: whatever they are called."""

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
