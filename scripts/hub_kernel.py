"""Writes the Triton backend as a project for Hugging Face's kernel-builder: make hub-kernel.

    OUT/build.toml, flake.nix        what kernel-builder needs to know
    OUT/torch-ext/coalign/           kernels/ without the native backend: Python and Triton alone, nothing to compile

A kernel of the Hub must load from any folder, beside other versions of itself and beside an installed coalign. So the
namespace of its operators comes from `_ops.py`, which kernel-builder writes; `names.py` is the one file that differs.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

ROOT = Path(__file__).parents[1]
LEFT_OUT = ("native", "report.py", "frozen.py", "__pycache__")  # what needs csrc, the command line, or the model

BUILD = """\
[general]
name = "coalign"
version = 1
edition = 5
license = "Apache-2.0"
backends = ["cuda", "rocm"]

[general.hub]
repo-id = "{repository}"

[torch-noarch]
pyext = ["py", "json"]
"""

FLAKE = """\
{
  description = "Bidirectional soft alignment, fused, in Triton";
  inputs.kernel-builder.url = "github:huggingface/kernels";
  outputs = { self, kernel-builder }: kernel-builder.lib.genKernelFlakeOutputs { inherit self; path = ./.; };
}
"""

NAMES = '''\
"""What this package is to PyTorch, and what it ships."""

from ._ops import add_op_namespace_prefix

NAMESPACE = add_op_namespace_prefix("").removesuffix("::")
BACKENDS = ("triton", "reference")  # fastest first
'''


def write(out: Path, repository: str) -> None:
    """Write the project into a folder that does not exist or is empty.

    Raises:
        FileExistsError: there is something in it.
    """
    if out.exists() and any(out.iterdir()):
        raise FileExistsError(f"{out} is not empty")
    package = out / "torch-ext" / "coalign"
    shutil.copytree(ROOT / "kernels", package, ignore=shutil.ignore_patterns(*LEFT_OUT))
    (package / "names.py").write_text(NAMES)
    (out / "build.toml").write_text(BUILD.format(repository=repository))
    (out / "flake.nix").write_text(FLAKE)
    shutil.copy(ROOT / "LICENSE", out)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="the folder to write")
    parser.add_argument("--repository", default="coalign/soft-align", help="its name on the Hub")
    options = parser.parse_args()
    write(options.out, options.repository)
    print(f"written to {options.out}")
