"""python -m benchmarks --layers: the drop-in layers against their originals' formulas in plain PyTorch.

Inputs, masks and parameters are the same for both; a formula gets what the original would get. Outputs at tokens are
compared before anything is timed; then both take turns as in `measure`, forward, and forward with the gradients of
inputs and parameters. Layers are in evaluation mode: no dropout on either side.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from coalign.model import layers
from rich.table import Table
from torch import Tensor, nn

from . import layer_formulas as formulas
from . import measure, results
from .cases import snli_lengths
from .report import as_markdown, as_table, distinctions, runs, time
from .targets import Direction

SETS = 3
ORIGINAL = "original"
BUDGET = 1e-4


Made = tuple[nn.Module, formulas.Formula, list[Tensor], list[Tensor | None]]


@dataclass(frozen=True)
class LayerCase:
    """A layer at a size that its users run. make(): the layer, its original's formula, one set of inputs and, for each
    output, its tokens (None: all)."""

    name: str
    size: str
    make: Callable[[torch.Generator], Made]


def _masks(lengths: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    mask_a, mask_b = (torch.arange(int(k.max())) < k[:, None] for k in lengths)
    return mask_a, mask_b


class _Fixed(nn.Module):
    """A layer with arguments that are not differentiated."""

    def __init__(self, layer: nn.Module, call: Callable[..., Any]):
        super().__init__()
        self.layer, self.call = layer, call

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        found = self.call(self.layer, *inputs)
        return (found,) if isinstance(found, Tensor) else tuple(found)


def _lightglue(points: int) -> LayerCase:
    def make(draw: torch.Generator) -> Made:
        inputs = [torch.randn(1, points, 256, generator=draw) for _ in range(2)]
        layer = _Fixed(layers.CrossBlock(256, 4), lambda layer, *x: layer(*x))
        return layer, formulas.cross_block(4, None), inputs, [None, None]

    return LayerCase(f"LightGlue, {points} keypoints", f"1 x 4 x {points} x {points}, 64 wide", make)


def _bidirectional(draw: torch.Generator) -> Made:
    lengths = torch.randint(600, 1025, (2,), generator=draw), torch.randint(600, 1025, (2,), generator=draw)
    masks = torch.arange(1024) < lengths[0][:, None], torch.arange(1024) < lengths[1][:, None]
    inputs = [torch.randn(2, 1024, 512, generator=draw) for _ in range(2)]
    layer = layers.BidirectionalCrossAttention(dim=512, heads=8, dim_head=64)
    allowed = masks[0][:, None, :, None] & masks[1][:, None, None, :]
    formula = formulas.bidirectional(8, False, False, allowed, None)
    call = _Fixed(layer, lambda layer, x, y: layer(x, y, mask=masks[0], context_mask=masks[1]))
    return call, formula, inputs, list(masks)


def _grounding_dino(draw: torch.Generator) -> Made:
    text = torch.arange(256) < 200
    inputs = [torch.randn(1, 5000, 256, generator=draw), torch.randn(1, 256, 256, generator=draw)]
    pads = ~text[None]
    layer = _Fixed(
        layers.BiMultiHeadAttention(256, 256, 1024, 4), lambda layer, v, l: layer(v, l, attention_mask_l=pads)
    )
    return layer, formulas.grounding_dino(4, None, pads), inputs, [None, text[None]]


def _esim(draw: torch.Generator) -> Made:
    mask_a, mask_b = _masks(snli_lengths(64, 50, 50, seed=0))
    inputs = [torch.randn(64, mask.shape[1], 600, generator=draw) * 0.2 for mask in (mask_a, mask_b)]
    layer = _Fixed(layers.LocalInference(), lambda layer, a, b: layer(a, mask_a, b, mask_b))
    return layer, formulas.esim(mask_a[:, :, None] & mask_b[:, None]), inputs, [mask_a, mask_b]


def _graphs(draw: torch.Generator) -> Made:
    sizes = torch.randint(10, 61, (128,), generator=draw)
    graph = torch.arange(128).repeat_interleave(sizes)
    nodes = torch.arange(len(graph)).split(sizes.tolist())
    places = list(zip(nodes[::2], nodes[1::2], strict=True))
    layer = _Fixed(layers.CrossGraphAttention("dotproduct"), lambda layer, x: layer(x, graph, 128))
    return layer, formulas.graph_matching("dotproduct", places), [torch.randn(len(graph), 64, generator=draw)], [None]


def _allennlp(draw: torch.Generator) -> Made:
    mask_a, mask_b = _masks(snli_lengths(64, 50, 50, seed=0))
    inputs = [torch.randn(64, mask.shape[1], 200, generator=draw) * 0.2 for mask in (mask_a, mask_b)]
    layer = layers.AllenNlpDecomposableAttention(200, 200, 3)
    call = _Fixed(layer, lambda layer, a, b: layer(a, b, premise_mask=mask_a, hypothesis_mask=mask_b))
    return call, formulas.allennlp(mask_a, mask_b), inputs, [None]


CASES = (
    _lightglue(512),
    _lightglue(2048),
    LayerCase("bidirectional-cross-attention", "2 x 8 x 1024 x 1024, 64 wide, 600 to 1024 tokens", _bidirectional),
    LayerCase("GroundingDINO", "1 x 4 x 5000 x 256, 256 wide, 200 words", _grounding_dino),
    LayerCase("ESIM", "64 pairs of SNLI's lengths, 600 wide", _esim),
    LayerCase("Graph Matching Networks", "64 pairs of 10 to 60 nodes, 64 wide", _graphs),
    LayerCase("AllenNLP", "64 pairs of SNLI's lengths, 200 wide", _allennlp),
)


def run(
    case: LayerCase, direction: Direction, rounds: int, threads: int, step: Callable[[], None] = lambda: None
) -> list[dict[str, Any]]:
    """Time a layer and its original: records for `results`, in seconds a call.

    Raises:
        measure.Wrong: their outputs differ by more than 1e-4.
    """
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    measure.settle_allocator()
    draw = torch.Generator().manual_seed(0)
    calls: dict[str, list[Callable[[], object]]] = {"coalign": [], ORIGINAL: []}
    for _ in range(SETS):
        layer, formula, inputs, kept = case.make(draw)
        layer.eval()
        names = {name.removeprefix("layer."): p for name, p in layer.named_parameters()}
        contenders = {"coalign": layer, ORIGINAL: lambda *x, f=formula, names=names: f(names, *x)}
        _check(case, contenders, inputs, kept)
        for name, contender in contenders.items():
            make = _forward if direction == "forward" else _both
            calls[name].append(make(contender, inputs, list(names.values()), kept))
    return [
        {
            "case": case.name,
            "size": case.size,
            "contender": timing.contender,
            "direction": direction,
            "kind": "cpu",
            "graph": False,
            **{f"p{round(100 * q)}": timing.quantile(q) for q in (0.2, 0.5, 0.8)},
            "samples": [float(f"{t:.4g}") for t in timing.samples],
            "memory": timing.memory,
            "threads": threads,
            **results.environment("cpu"),
        }
        for timing in measure.take_turns(calls, rounds, step)
    ]


def _check(case: LayerCase, contenders: dict[str, Any], inputs: list[Tensor], kept: list[Tensor | None]) -> None:
    with torch.no_grad():
        found, truth = (contender(*inputs) for contender in contenders.values())
    for one, other, mask in zip(found, truth, kept, strict=True):
        if mask is not None:
            one, other = (t[mask.expand(t.shape[:-1])] for t in (one, other))
        measure.hold(f"{case.name}: the layer is", one, other, BUDGET)


def _forward(contender: Any, inputs: list[Tensor], parameters: list[Tensor], kept: Any) -> Callable[[], object]:
    def call() -> object:
        with torch.no_grad():
            return contender(*inputs)

    return call


def _both(contender: Any, inputs: list[Tensor], parameters: list[Tensor], kept: Any) -> Callable[[], object]:
    leaves = [t.clone().requires_grad_() for t in inputs]
    with torch.no_grad():
        shapes = [t.shape for t in contender(*inputs)]
    upstream = [
        torch.randn(shape) * (1 if mask is None else mask.expand(shape[:-1])[..., None])
        for shape, mask in zip(shapes, kept, strict=True)
    ]
    return lambda: torch.autograd.grad(contender(*leaves), [*leaves, *parameters], upstream)


KEY = ("case", "threads", "device")


def speedups(lines: list[dict[str, Any]]) -> dict[tuple[str, int, str], dict[Direction, tuple[float, float, float]]]:
    """By case, threads and device, then by direction: ours and the original's median seconds, and their ratio; the
    latest counts."""
    found: dict[tuple[str, int, str], dict[Direction, tuple[float, float, float]]] = {}
    for (*key, direction), of in runs(lines, *KEY, "direction").items():
        if complete := [run for run in of if {"coalign", ORIGINAL} <= run.keys()]:
            ours, original = (complete[-1][name]["p50"] for name in ("coalign", ORIGINAL))
            found.setdefault(tuple(key), {})[direction] = ours, original, original / ours
    return found


HEADINGS = ("layer", "size", "forward", "original's", "times as fast", "both", "original's", "times as fast")


def _rows(lines: list[dict[str, Any]]) -> list[tuple[str, ...]]:
    found = speedups(lines)
    first = [next(line for line in lines if tuple(line[name] for name in KEY) == key) for key in found]
    rows = []
    for line, by_direction, told in zip(first, found.values(), distinctions(first), strict=True):
        row = [", ".join([line["case"], *told]), line["size"]]
        for direction in measure.directions():
            if direction in by_direction:
                ours, original, ratio = by_direction[direction]
                row += [time(ours), time(original), f"{ratio:.1f}"]
            else:
                row += [""] * 3
        rows.append(tuple(row))
    return rows


def column(lines: list[dict[str, Any]], case: str) -> str:
    """How many times as fast a layer is with the most threads, forward and with its gradients: for the README's
    table."""
    found = speedups(lines)
    by_direction = found[max((key for key in found if key[0] == case), key=lambda key: key[1])]
    return " / ".join(f"{by_direction[direction][-1]:.1f}" for direction in measure.directions())


def table(lines: list[dict[str, Any]]) -> Table:
    return as_table(HEADINGS, _rows(lines))


def markdown(lines: list[dict[str, Any]]) -> str:
    """The table for docs/layers.md."""
    return as_markdown(HEADINGS, _rows(lines))
