"""Models some of whose functions or classes mean something else than they did: what they mean now is computed."""

import copy

import pytest
import torch
from test_inference import PAIRS, model
from torch import nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from coalign import Aggregate, Attend


def twice(output):
    return 2 * output if isinstance(output, torch.Tensor) else tuple(2 * o for o in output)


class Rounded(TorchFunctionMode):
    """Other linear layers, as who tries out a number format makes them."""

    def __torch_function__(self, function, types, arguments=(), options=None):
        found = function(*arguments, **(options or {}))
        return found.bfloat16().float() if function is F.linear else found


@pytest.mark.parametrize("learns", [True, False])
def test_functions_in_the_place_of_pytorchs_are_used(learns):
    padded = PAIRS.padded(1)
    found = []
    for backend in (None, "reference"):
        of = model()
        of.backend = backend
        with torch.set_grad_enabled(learns):
            for whole in (of, of.freeze()):
                for ids in (PAIRS, padded):
                    before = whole(ids)
                    with torch.device("cpu"):
                        assert torch.equal(whole(ids), before)  # that mode changes no function
                    with Rounded():
                        found.append(whole(ids))
                    assert (found[-1] - before).norm() > 1e-4 * before.norm()
    for fast, plain in zip(found[:4], found[4:], strict=True):
        torch.testing.assert_close(fast, plain, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("learns", [True, False])
@pytest.mark.parametrize("kind", [Attend, Aggregate, nn.Embedding, nn.Linear, nn.ReLU])
def test_a_class_that_was_given_another_forward(kind, learns, monkeypatch):
    """As the book's add_to_class gives it."""
    of, own = model(), kind.forward
    with torch.no_grad():
        before = of(PAIRS)
    monkeypatch.setattr(kind, "forward", lambda *given, **options: twice(own(*given, **options)))
    plain = copy.deepcopy(of)
    plain.backend = "reference"
    expected = plain(PAIRS).detach()
    assert not torch.allclose(expected, before, atol=1e-3)
    with torch.set_grad_enabled(learns):
        for ids in (PAIRS, PAIRS.padded(1)):
            torch.testing.assert_close(of(ids).detach(), expected, rtol=1e-4, atol=1e-4)
    with pytest.raises(TypeError, match="is not as the model was made with it"):
        of.freeze()
