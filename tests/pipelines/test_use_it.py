"""docs/use-it.md: its Python runs as it stands, one block after the other, over the embedded model."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
BASE = "stabilityai/stable-diffusion-xl-base-1.0"


@pytest.mark.slow
def test_the_pages_python_runs(runs: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights that are not here are replaced: SDXL by the embedded model, PickScore by the embedded judge."""
    emoji = {"pretrained_model_name_or_path": str(ROOT / "assets/tiny-sdxl"), "resolution": 64, "max_train_steps": 1}
    run = runs("sdxl", "lora", **emoji)
    monkeypatch.chdir(tmp_path)
    for place, target in ((BASE, ROOT / "assets/tiny-sdxl"), ("runs/mine", run)):
        Path(place).parent.mkdir()
        Path(place).symlink_to(target)
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs/use-it.md").read_text(encoding="utf-8"), re.DOTALL)
    assert len(blocks) == 5
    names: dict[str, object] = {}
    for block in blocks:
        here = block.replace('"pickscore"', '"emoji_hand"').replace("n=8", "n=2")
        here = re.sub(r'((?:pipe|best)\("a fox in the snow"|\["emoji_hand"\])\)', r"\1, num_inference_steps=2)", here)
        exec(compile(here, "docs/use-it.md", "exec"), names)
    assert str(names["found"]).startswith("emoji_hand: a wins")
