"""The code of the README and of the pages in docs/ runs as it stands."""

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
