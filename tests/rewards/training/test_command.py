"""The settings of a reward's training: files, flags, and what reading them costs."""

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from diffpref.rewards.training.command import main
from diffpref.rewards.training.settings import READER

ROOT = Path(__file__).parents[3]


def test_the_command_line(small_clip: Path, pairs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A YAML file, flags over it, and the same names as fields with hyphens."""
    config = {"pretrained_model_name_or_path": str(small_clip), "dataset_name": "absent", "max_train_steps": 9}
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(config))
    flags = ["--config", str(tmp_path / "run.yaml"), "--dataset-name", str(pairs), "--max_train_steps=1"]
    flags += ["--overwrite_output_dir", "--output_dir", str(tmp_path / "out"), "--train_batch_size", "2"]
    assert main(["train", *flags]) == 0
    assert "reward.yaml names the reward" in capsys.readouterr().out
    written = READER.from_yaml(tmp_path / "out" / "config.yaml")
    assert written.pairs.dataset_name == str(pairs) and written.optimization.max_train_steps == 1
    assert written.run.overwrite_output_dir
    (tmp_path / "run.yaml").write_text("learnig_rate: 1")
    with pytest.raises(ValueError, match="unknown key 'learnig_rate'. Perhaps you meant 'learning_rate'"):
        main(["train", *flags])


@pytest.mark.parametrize("name", ["tiny", "pickscore", "hps"])
def test_the_published_configs_are_read(name: str) -> None:
    config = READER.from_yaml(ROOT / "configs" / "reward" / f"{name}.yaml")
    assert READER.to_mapping(config)["loss"] == ("hps" if name == "hps" else "pickscore")
    assert READER.from_mapping(READER.to_mapping(config), "again") == config


@pytest.mark.slow
def test_the_trainer_loads_neither_diffusers_nor_peft() -> None:
    """Training a CLIP needs neither, unless LoRA is asked for."""
    code = "import sys, diffpref.rewards.training.loop; print({'diffusers', 'peft'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["set()"]
