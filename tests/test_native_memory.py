"""Where memory does not suffice for the C++ kernels."""

import pytest
import torch

from coalign import soft_align

pytestmark = pytest.mark.skipif(
    torch.__version__ < (2, 13), reason="earlier versions of PyTorch can't be asked for the reason"
)


@pytest.mark.parametrize("stored", [(1, 4, 2**20), (1, 4, 1)], ids=["of results", "of a copy of operands"])
def test_the_error_is_pytorchs_own(stored):
    pairs = 2**28
    features = torch.zeros(1, 4, 8).expand(pairs, 4, 8)
    values = torch.zeros(stored).expand(pairs, 4, 2**20)
    with pytest.raises(RuntimeError, match=r"tried to allocate 4503599627370496 bytes"):  # 2^28 x 4 x 2^20 floats
        soft_align(features, features, values, values, backend="native")
