"""Which cases belong together, the most important ones first."""

from __future__ import annotations

import torch

from .cases import Case

HALF = torch.bfloat16


def cpu() -> list[Case]:
    """The sizes that the C++ kernels are held to."""
    return [
        Case("d2l full", 256, 50, 50),
        Case("SNLI padded", 256, 50, 50, lengths="snli"),
        Case("SNLI packed", 256, 50, 50, lengths="snli", packed=True),
        Case("SNLI padded bfloat16", 256, 50, 50, lengths="snli", dtype=HALF),
        Case("SNLI packed bfloat16", 256, 50, 50, lengths="snli", packed=True, dtype=HALF),
        Case("stream", 8, 2048, 2048, h=64, d=64),
        Case("stream bfloat16", 8, 2048, 2048, h=64, d=64, dtype=HALF),
        Case("one pair 15 x 8", 1, 15, 8),
        Case("one pair 50 x 50", 1, 50, 50),
    ]


def wide() -> list[Case]:
    """Sizes of other models with the same operator: keypoints, an image's places with words, wider sentences."""
    return [
        Case("LightGlue 512", 4, 512, 512, h=64, d=64),
        Case("LightGlue 2048", 4, 2048, 2048, h=64, d=64),
        Case("GroundingDINO", 4, 22_000, 256, h=256, d=256),
        Case("ESIM", 32, 50, 50, h=600, d=600, lengths="snli"),
    ]


def length() -> list[Case]:
    """Time and memory against length."""
    return [Case(f"length {n}", 4, n, n, h=64, d=64) for n in (64, 128, 256, 512, 1024, 2048)]


def scaling() -> list[Case]:
    """More and more pairs: the cost of each should stay what it is."""
    return [Case(f"{pairs} pairs", pairs, 50, 50, lengths="snli", packed=True) for pairs in (1, 16, 256, 4096, 100_000)]


def gpu() -> list[Case]:
    """The sizes that the GPU kernels are held to."""
    return [
        Case("d2l full bfloat16", 256, 50, 50, dtype=HALF),
        Case("SNLI packed bfloat16", 256, 50, 50, lengths="snli", packed=True, dtype=HALF),
        Case("d2l full TF32", 256, 50, 50, tf32=True),
        Case("SNLI packed bfloat16, 8192 pairs", 8192, 50, 50, lengths="snli", packed=True, dtype=HALF),
        Case("stream bfloat16", 32, 2048, 2048, h=64, d=64, dtype=HALF),
        Case("masked 200/100 bfloat16", 8, 1024, 1024, lengths="half", dtype=HALF),
        Case("d2l full bfloat16, 8192 pairs", 8192, 50, 50, dtype=HALF),
        Case("d2l full float32", 256, 50, 50),
        Case("LightGlue 1024 bfloat16", 16, 1024, 1024, h=64, d=64, dtype=HALF),
        Case("LightGlue 4096 bfloat16", 32, 4096, 4096, h=64, d=64, dtype=HALF),
        Case("GroundingDINO bfloat16", 4, 22_000, 256, h=256, d=256, dtype=HALF),
        Case("ESIM bfloat16", 256, 50, 50, h=600, d=600, lengths="snli", dtype=HALF),
        Case("one pair 15 x 8", 1, 15, 8),
    ]


SUITES = {"cpu": cpu, "wide": wide, "length": length, "scaling": scaling, "gpu": gpu}
