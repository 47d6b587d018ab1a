"""The notebooks of examples/: the code of each, cell after cell, in an empty folder."""

import ast
import json
import re
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

FOLDER = Path(__file__).parents[1] / "examples"


def run(name: str, **numbers: int) -> tuple[dict[str, Any], Any]:
    """The names that a notebook ends with, and what its last cell shows; `numbers` stand for those that it sets."""
    cells = json.loads((FOLDER / f"{name}.ipynb").read_text(encoding="utf-8"))["cells"]
    names: dict[str, Any] = {}
    shown: list[Any] = []
    for cell in cells:
        if cell["cell_type"] != "code":
            continue
        assert cell["outputs"] == [] and cell["execution_count"] is None, "notebooks are stored without outputs"
        tree = ast.parse("".join(cell["source"]))
        last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
        exec(compile(tree, name, "exec"), names)
        names.update({key: value for key, value in numbers.items() if key in names})
        if last is not None:
            shown.append(eval(compile(ast.Expression(last.value), name, "eval"), names))
    return names, next((value for value in reversed(shown) if value is not None), None)


def test_the_mathematics(capsys: pytest.CaptureFixture[str]) -> None:
    """The integral of the errors is the ratio of the densities, to what 2,000 draws of noise give."""
    names, _ = run("mathematics", DRAWS=500)
    pairs = re.findall(r"(-?[\d.]+) from errors, (-?[\d.]+) from the densities", capsys.readouterr().out)
    assert len(pairs) == 2 and abs(float(pairs[0][1]) - float(pairs[1][1])) > 1
    for found, exact in pairs:
        assert float(found) == pytest.approx(float(exact), abs=0.15)
    assert float(names["errors"].log_ratio[0, 0]) > float(names["errors"].log_ratio[0, 1])


@pytest.mark.slow
def test_the_quickstart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names, shown = run("quickstart", STEPS=4, CAPTIONS=4)
    assert isinstance(shown, Image.Image) and "emoji_hand: a wins" in str(names["found"])
    assert (tmp_path / "runs/notebook-quickstart/report.html").is_file()


@pytest.mark.slow
def test_your_own_pairs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    run("your_own_pairs", STEPS=4)
    said = capsys.readouterr().out
    assert "better, worse:" in said and "48" in said
    assert (tmp_path / "runs/notebook-mine/pytorch_lora_weights.safetensors").is_file()
