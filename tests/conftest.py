"""The backend axis, poisoned memory, and hypothesis profiles.

A test that takes the `backend` fixture runs once for every backend of `coalign.BACKENDS` and device that it can
serve in this process, and once more on the CUDA kernels under the simulator (tests/cuda_sim). A new backend needs an
entry in `_devices` and no other change here.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import NamedTuple

import pytest
import torch
from coalign.kernels import dispatch
from coalign.kernels.native import build, build_cuda
from cuda_sim import simulated
from hypothesis import settings
from torch.utils import deterministic

import coalign

# Triton reads this when it is imported, so its interpreter needs a process of its own: `make test` starts one.
INTERPRETING = os.environ.get("TRITON_INTERPRET") == "1"
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # or cuBLAS warns in torch's deterministic mode

settings.register_profile("default", deadline=None)
settings.register_profile("ci", settings.get_profile("default"), derandomize=True)
settings.load_profile("ci" if os.environ.get("CI") else "default")


class Backend(NamedTuple):
    """A backend by name, and the device whose tensors it is given."""

    name: str
    device: str

    def __str__(self) -> str:
        return f"{self.name}-{self.device}"

    @property
    def for_gpus(self) -> bool:
        """Whether its kernels are a GPU's, on which float64 is not to be had."""
        return self.name in ("triton", simulated.name) or (self.name == "native" and self.device == "cuda")


def _devices(name: str) -> list[str]:
    """The devices on which a backend is tested in this process; where there is no GPU, "cuda" skips."""
    if INTERPRETING:
        return ["cpu"] if name == "triton" else []
    if name == simulated.name:
        return ["cpu"]
    if name in ("native", "reference"):
        here = torch.cuda.is_available() and (name == "reference" or _builds_cuda())
        return ["cpu", "cuda"] if here else ["cpu"]
    return ["cuda"]


def _builds_cuda() -> bool:
    """Whether the native kernels can be built for the GPU."""
    try:
        return torch.version.hip is None and bool(build_cuda.nvcc())
    except build.BuildError:
        return False


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    explicit = [m.args[0] for m in metafunc.definition.iter_markers("parametrize")]
    if "backend" in metafunc.fixturenames and "backend" not in explicit:
        axis = [Backend(name, device) for name in (*coalign.BACKENDS, simulated.name) for device in _devices(name)]
        metafunc.parametrize(
            "backend", [pytest.param(b, id=str(b), marks=[pytest.mark.gpu] if b.device == "cuda" else []) for b in axis]
        )


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("gpu") and not torch.cuda.is_available():
        pytest.skip("needs a GPU")
    if item.get_closest_marker("nvcc") and not _builds_cuda():
        pytest.skip("needs nvcc")


@pytest.fixture(autouse=True)
def _seeded() -> None:
    """A test draws the same numbers in every run: one that fails, fails again."""
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _simulated_backend(request: pytest.FixtureRequest) -> Iterator[None]:
    """The simulator is a backend for the tests that are given it, and for nobody else."""
    call = getattr(request.node, "callspec", None)
    wanted = call is not None and getattr(call.params.get("backend"), "name", None) == simulated.name
    take_away = dispatch.register(simulated) if wanted else lambda: None
    yield
    take_away()


@pytest.fixture(autouse=True)
def _living_gpu(request: pytest.FixtureRequest) -> Iterator[None]:
    """A kernel that reads where nothing is ends all that the process has on the GPU. The test during which that shows
    is named, and the tests after it are another process' (pytest-xdist starts one), or are not run."""
    yield
    if request.node.get_closest_marker("gpu") and torch.cuda.is_available():
        try:
            torch.cuda.synchronize()
        except RuntimeError as error:
            if "PYTEST_XDIST_WORKER" in os.environ:
                os._exit(1)
            pytest.exit(f"{request.node.nodeid} lost the GPU: {error}", returncode=1)


@pytest.fixture
def poisoned_memory() -> Iterator[None]:
    """torch.empty and its kin give NaN (integers: the largest), so that what a kernel fails to write shows."""
    deterministic_before = torch.are_deterministic_algorithms_enabled()
    fill_before = deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]
    torch.use_deterministic_algorithms(True, warn_only=True)
    deterministic.fill_uninitialized_memory = True  # type: ignore[attr-defined]
    yield
    torch.use_deterministic_algorithms(deterministic_before)
    deterministic.fill_uninitialized_memory = fill_before  # type: ignore[attr-defined]
