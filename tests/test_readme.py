"""The code of the README and of the pages in docs/ runs as it stands, and what they link and quote is there."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = sorted((ROOT / "docs").glob("*.md"))


def run(page):
    """Its Python blocks, one after another; the names that they made."""
    names = {}
    for block in re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL):
        exec(compile(block, page.name, "exec"), names)
    return names


def test_the_readmes_blocks(tmp_path, monkeypatch):
    """With the data files that they name, in small."""
    monkeypatch.chdir(tmp_path)
    columns = "gold_label\tsentence1_binary_parse\tsentence2_binary_parse\n"
    Path("snli_1.0_train.txt").write_text(columns + "neutral\t( a dog )\t( ( a cat ) . )\n" * 9)
    names = run(ROOT / "README.md")
    assert names["beta"].shape == (8, 50, 100)
    assert names["scores"].shape == (9, 3)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_pages_blocks(page):
    assert run(page)


def test_pages_and_files_that_are_linked_exist():
    for page in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *PAGES):
        for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name}: {target}"
    assert len(PAGES) >= 5


def test_what_the_readme_says_of_a_gpu_is_in_its_tables():
    """Its sentences quote tables that are held against the stored results themselves (test_benchmarks.py)."""
    of_gpu = (ROOT / "docs/performance.md").read_text().split("## On an H200")[1].split("\n## ")[0]
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in of_gpu.splitlines() if line.startswith("| ")]
    frozen = next(row for row in rows if row[1] == "frozen, bfloat16")
    rate, ratio = int(frozen[3].replace(",", "")) / 1e6, float(frozen[7])
    calls = [float(row[4]) for row in rows if row[1] in ("forward", "both")]
    graphs = [float(row[4]) for row in rows if row[1].endswith(", graph")]
    said = " ".join((ROOT / "README.md").read_text().split())
    for sentence in (
        f"classifies {rate:.1f} million pairs a second, {ratio:.1f} times as many as d2l's model at its fastest",
        f"single calls are {min(calls):.2f} to {max(calls):.2f} times as fast as PyTorch's",
        f"the operator is {min(graphs):.1f} to {max(graphs):.1f} times as fast",
    ):
        assert sentence in said
