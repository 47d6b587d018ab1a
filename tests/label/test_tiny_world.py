"""The whole road without people, on the embedded models: prompts, images, rewards, phi, RankDPO, and a judge."""

from pathlib import Path

import pytest
import torch

from diffpref.data.decode import decode
from diffpref.data.preferences import read_preferences
from diffpref.demo.compare import compare_hands
from diffpref.demo.judge import Judge
from diffpref.demo.quickstart import draw
from diffpref.files.embedded import embedded
from diffpref.label.engine import label
from diffpref.label.settings import from_mapping as label_from_mapping
from diffpref.label.settings import from_yaml as label_from_yaml
from diffpref.label.settings import to_mapping as label_to_mapping
from diffpref.training.loop import train
from diffpref.training.settings import from_mapping, from_yaml


@pytest.mark.slow
def test_labels_without_people_teach_the_hand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """configs/label/tiny.yaml with half of its images, then the config that trains on it; judged on captions that
    were neither labelled nor trained on. The judge shares nothing with the rewards."""
    monkeypatch.chdir(embedded("configs").parent)
    keys = label_to_mapping(label_from_yaml(embedded("configs/label/tiny.yaml")))
    keys |= {"output_dir": str(tmp_path / "labels")}
    keys["generators"] = [{**generator, "samples": 2} for generator in keys["generators"]]
    folder = label(label_from_mapping(keys, "the test"), say=lambda line: None)
    base = from_yaml(embedded("configs/tiny-sdxl/rankdpo-label.yaml"))
    changes = {"dataset_name": str(folder / "packs" / "lists"), "output_dir": str(tmp_path / "run")}
    config = from_mapping({**changes, "validation_prompts": []}, "the test", base)
    run = train(config, say=lambda line: None)
    heldout = read_preferences(embedded("assets/emoji-pairs/heldout.parquet"))
    real = [decode(row.images[row.scores.index(max(row.scores))]) for row in heldout]
    captions = [heldout[place].prompt for place in range(0, len(heldout), 2)]
    model = embedded("assets/tiny-sdxl")
    before, after = draw(model, None, captions, config), draw(model, run, captions, config)
    judge = Judge.load(embedded("assets/judge"))
    result = compare_hands(judge, base=before, tuned=after, captions=captions, artist="openmoji", real=real)
    assert result.win_rate.low > 0.5, str(result.win_rate)
    # The price: most images still show their caption.
    assert result.tuned.top1 > result.base.top1 - 0.15
    assert torch.isfinite(torch.tensor(result.tuned.frechet))
