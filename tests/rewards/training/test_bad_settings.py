"""What a reward's training refuses before its first step, and that it leaves nothing then."""

from pathlib import Path

import datasets
import pytest
from transformers import CLIPModel

from tests.rewards.training.reward_run import png


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pretrained_model_name_or_path": ""}, "pretrained_model_name_or_path is empty"),
        ({"dataset_name": ""}, "dataset_name is empty"),
        ({"logging_steps": 0}, "logging_steps must be 1 or above, got 0"),
        ({"learning_rate": 0.0}, "learning_rate must be above 0"),
        ({"trained_text_layers": 3}, "trained_text_layers must be from 0 to the 2 layers that the tower has, got 3"),
        ({"trained_text_layers": 0, "trained_vision_layers": 0, "train_logit_scale": False}, "nothing is trained"),
        ({"columns": ["caption"]}, "columns must be written as NAME=COLUMN, like prompt=my_caption, got 'caption'"),
        ({"columns": ["prompt=a", "prompt=b"]}, r"columns names prompt twice \(a and b\): keep one"),
        ({"adapter": "lora", "rank": 0}, "rank must be 1 or above"),
        ({"adapter": "lora", "lora_target_modules": ["to_q"]}, r"no layer of the model ends in \['to_q'\]"),
        ({"labels": "scores", "loss": "hps", "resume_from_checkpoint": "checkpoint-9"}, "no such checkpoint"),
    ],
)
def test_bad_settings_are_named(run, tmp_path: Path, changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        run(**changes)
    assert not (tmp_path / "run").exists(), "a run that did not start leaves nothing"


def test_bad_models_and_data_are_named(run, small_clip: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="checkpoint '.*absent' "):
        run(pretrained_model_name_or_path=str(tmp_path / "absent"))
    CLIPModel.from_pretrained(small_clip).text_model.save_pretrained(tmp_path / "half")
    with pytest.raises(ValueError, match="half"):
        run(pretrained_model_name_or_path=str(tmp_path / "half"))
    columns = {"caption": ["a", "b"], "jpg_0": [png(9)] * 2, "jpg_1": [png(8)] * 2, "label_0": [0.5, 0.5]}
    datasets.Dataset.from_dict(columns).to_parquet(tmp_path / "ties.parquet")
    with pytest.raises(ValueError, match="all 2 pairs are ties"):
        run(dataset_name=str(tmp_path / "ties.parquet"))
    del columns["jpg_1"]
    datasets.Dataset.from_dict(columns).to_parquet(tmp_path / "column.parquet")
    with pytest.raises(ValueError, match="jpg_1"):
        run(dataset_name=str(tmp_path / "column.parquet"))
    columns |= {"jpg_1": [b"no picture"] * 2, "label_0": [1.0, 0.0]}
    datasets.Dataset.from_dict(columns).to_parquet(tmp_path / "broken.parquet")
    with pytest.raises(ValueError, match="broken.parquet row [01]: .*not an image.* `diffpref data validate`"):
        run(dataset_name=str(tmp_path / "broken.parquet"), train_batch_size=1)
