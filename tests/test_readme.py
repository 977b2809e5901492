"""The README's code runs as it stands."""

import re
from pathlib import Path

README = (Path(__file__).parents[1] / "README.md").read_text()


def test_python_blocks_run_one_after_another(tmp_path, monkeypatch):
    """With the data files that they name, in small."""
    monkeypatch.chdir(tmp_path)
    columns = "gold_label\tsentence1_binary_parse\tsentence2_binary_parse\n"
    Path("snli_1.0_train.txt").write_text(columns + "neutral\t( a dog )\t( ( a cat ) . )\n" * 9)
    blocks = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert len(blocks) >= 2
    names = {}
    for block in blocks:
        exec(compile(block, "README.md", "exec"), names)
    assert names["beta"].shape == (8, 50, 100)
    assert names["scores"].shape == (9, 3)
