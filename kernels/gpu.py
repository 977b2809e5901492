"""What the backends for GPUs share: what a GPU has, what PyTorch allows there, and tensors as kernels read them."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor


def tf32_allowed() -> bool:
    """Whether torch's own switch lets float32 products use TF32 tensor cores; IEEE float32 otherwise, and on AMD GPUs
    that have none."""
    return torch.backends.cuda.matmul.fp32_precision == "tf32" and (torch.version.hip is None or _has_xf32())


@cache
def _has_xf32() -> bool:
    """Whether the current AMD GPU has products of TF32's kind: of those that Triton serves only the MI300's."""
    return architecture(torch.device("cuda", torch.cuda.current_device())) == "gfx942"


@cache
def capability(device: torch.device) -> tuple[int, int]:
    return torch.cuda.get_device_capability(device)


@cache
def architecture(device: torch.device) -> str:
    """The name of its instructions: sm_90, gfx942; "" of what is no GPU."""
    if device.type != "cuda":
        return ""
    if torch.version.hip is not None:
        return torch.cuda.get_device_properties(device).gcnArchName.split(":")[0]
    return "sm_{}{}".format(*capability(device))


@cache
def shared_memory(device: torch.device) -> int:
    """Bytes of shared memory that one block may use."""
    properties = torch.cuda.get_device_properties(device)
    return getattr(properties, "shared_memory_per_block_optin", properties.shared_memory_per_block)


def in_memory(t: Tensor) -> Tensor:
    """The tensor as its memory has to hold it: signs turned that PyTorch turns lazily (`z.conj().imag`), and zeros laid
    out that it keeps without memory."""
    if t.is_neg():
        return t.resolve_neg()
    return torch.zeros(t.shape, dtype=t.dtype, device=t.device) if t._is_zerotensor() else t
