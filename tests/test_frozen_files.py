"""Frozen models as files: what was saved is what is loaded, and files that are none."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from safetensors.torch import load_file, save_file

from coalign import DecomposableAttention, FrozenDecomposableAttention, PairBatch

PAIRS = PairBatch.from_lists([[5, 7, 2], [3], [9, 9, 4, 8]], [[2, 6], [], [7]])
PADDED = PAIRS.padded(1)


def frozen(dtype=torch.float32, padding_idx=1):
    torch.manual_seed(0)
    made = DecomposableAttention.from_sizes(60, 12, 20, num_classes=3, padding_idx=padding_idx)
    return made.eval().freeze(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("padding_idx", [1, 0, None])
def test_saved_and_loaded(tmp_path, dtype, padding_idx):
    made = frozen(dtype, padding_idx)
    made.save(tmp_path / "frozen.safetensors")
    again = FrozenDecomposableAttention.load(tmp_path / "frozen.safetensors")
    assert again.padding_idx == padding_idx
    assert torch.equal(again(PADDED), made(PADDED))
    assert repr(again) == repr(made)
    assert torch.equal(pickle.loads(pickle.dumps(made))(PADDED), made(PADDED))


def test_a_folder_that_is_missing_is_the_systems_error(tmp_path):
    with pytest.raises(FileNotFoundError, match="nonesuch"):
        frozen().save(tmp_path / "nonesuch/frozen.safetensors")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_pickled_and_copied(dtype):
    """As a process pool or torch.save does it; packed weights stay behind, for another machine may pack otherwise."""
    made = frozen(dtype)
    expected = made(PAIRS)
    for again in (pickle.loads(pickle.dumps(made)), copy.deepcopy(made)):
        assert again._kept == ((), None, None)
        assert torch.equal(again(PAIRS), expected)


def test_cast_models_are_saved_where_they_can_be_loaded(tmp_path):
    of = frozen().to(torch.bfloat16)
    of.save(tmp_path / "m.safetensors")
    loaded = FrozenDecomposableAttention.load(tmp_path / "m.safetensors")
    assert torch.equal(loaded(PAIRS), of(PAIRS))
    with pytest.raises(ValueError, match=r"saved in torch.float32 or torch.bfloat16, not in torch.float16"):
        frozen().half().save(tmp_path / "half.safetensors")


@pytest.mark.parametrize(
    ("change", "metadata", "message"),
    [
        ({}, {"format": "other"}, "holds no frozen model"),
        ({"table": None}, {}, "must hold"),
        ({"first_weight": torch.zeros(20, 39)}, {}, r"first_weight must be \(20, 40\)"),
        (
            {"first_weight": torch.zeros(20, 40).bfloat16()},
            {},
            "first_weight must be torch.float32, like table, not torch.bfloat16",
        ),
        ({"output_bias": torch.zeros(3).double()}, {}, "output_bias must be torch.float32, not torch.float64"),
        ({"table": torch.zeros(60, 60).half()}, {}, "table must be torch.float32 or torch.bfloat16, not torch.float16"),
        ({}, {"padding_idx": "one"}, "padding_idx must be a row of the table, not 'one'"),
        ({}, {"padding_idx": "-1"}, "padding_idx must be a row of the table, not '-1'"),
        ({}, {"padding_idx": "60"}, "padding_idx must be a row of the table, not '60'"),
    ],
)
def test_files_that_are_none(tmp_path, change, metadata, message):
    frozen().save(tmp_path / "whole")
    state = {name: t for name, t in (load_file(tmp_path / "whole") | change).items() if t is not None}
    save_file(state, tmp_path / "other", {"format": "coalign.frozen/1"} | metadata)
    with pytest.raises(ValueError, match=message):
        FrozenDecomposableAttention.load(tmp_path / "other")


def test_files_that_are_cut_or_absent(tmp_path):
    frozen().save(tmp_path / "whole")
    (tmp_path / "cut").write_bytes((tmp_path / "whole").read_bytes()[:5000])
    with pytest.raises(ValueError, match="not a whole safetensors file"):
        FrozenDecomposableAttention.load(tmp_path / "cut")
    with pytest.raises(OSError, match="absent"):
        FrozenDecomposableAttention.load(tmp_path / "absent")
    with pytest.raises(IsADirectoryError, match=f"Is a directory: '{tmp_path}'"):
        FrozenDecomposableAttention.load(tmp_path)
