"""The feed-forward network that d2l uses for f, g and h."""

from __future__ import annotations

from torch import nn


def mlp(num_inputs: int, num_hiddens: int, *, flatten: bool, dropout: float = 0.2) -> nn.Sequential:
    """Dropout, Linear, ReLU, twice; with flatten each followed by Flatten, as in d2l, whose names depend on it.

    Shapes: (*, num_inputs) to (*, num_hiddens). The linear layers are entries 1 and 4, or 1 and 5 with flatten.
    """
    layers: list[nn.Module] = []
    for width in (num_inputs, num_hiddens):
        layers += [nn.Dropout(dropout), nn.Linear(width, num_hiddens), nn.ReLU()]
        if flatten:
            layers.append(nn.Flatten(start_dim=1))
    return nn.Sequential(*layers)
