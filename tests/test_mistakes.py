"""What a new user gets wrong: each mistake gives one line, at most a second with the remedy, and no traceback."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from diffpref import cli
from diffpref.engine.step import Engine
from tests.small_sdxl import SIZE, save_pairs, save_pipeline

FLAGS: Mapping[str, tuple[str, str]] = {
    "a command misspelt": ("trian", "Perhaps you meant 'train'"),
    "no config and no model": ("train", "pretrained_model_name_or_path is empty"),
    "--config without a file": ("train --config", "--config needs a YAML file"),
    "a config that is not there": ("train --config no.yaml", "no.yaml: no such config file"),
    "a flag misspelt": ("train --learning_rat 1", "Perhaps you meant 'learning_rate'"),
    "a flag without its value": ("train --rank", "--rank needs a value"),
    "a word without a flag": ("train configs/dpo.yaml", "stands behind no flag"),
    "text for a number": ("train --rank high", "rank must be a whole number, got 'high'"),
    "a float for a whole number": ("train --max_train_steps 1e3", "max_train_steps must be a whole number"),
    "a comma in a number": ("train --learning_rate 1,5", "learning_rate must be a number, got '1,5'"),
    "two values for one": ("train --rank 4 8", "--rank needs one value"),
    "an objective misspelt": ("train --objective dop", "Perhaps you meant 'dpo'"),
    "no such precision": ("train --mixed_precision fp8", "must be one of no, fp16, bf16"),
    "8-bit Adam's old flag": ("train --use_8bit_adam", "set optimizer: adamw_8bit"),
    "the other scripts' columns": ("train --caption_column text", "give columns:"),
    "the other scripts' split": ("train --dataset_split_name train", "set dataset_split:"),
    "dropout of LoRA": ("train --lora_dropout 0.1", "would differ by chance"),
    "a key of another objective": ("train --gamma 2", "gamma belongs to objective: smpo"),
    "a key of another probe": ("train --renoise 1", "renoise belongs to probe: inversion"),
    "two names of one key": ("train --beta_dpo", "--beta needs a value"),
    "an inversion without its key": ("train --probe inversion --average_estimates", "renoise must be 1 or above"),
}
"""The command line, and what it says."""
KEYS: Mapping[str, tuple[Mapping[str, Any], str]] = {
    "a key misspelt": ({"learnig_rate": 1}, "Perhaps you meant 'learning_rate'"),
    "text with a unit": ({"max_train_steps": "2k"}, "max_train_steps must be a whole number, got '2k'"),
    "a negative rate": ({"learning_rate": -1e-5}, "learning_rate must be above 0"),
    "no steps": ({"max_train_steps": 0}, "max_train_steps must be above 0"),
    "a share in percent": ({"proportion_empty_prompts": 20}, "must be in [0, 1], got 20"),
    "a side of no latent": ({"resolution": 30}, "resolution must be a multiple of 8"),
    "a number for a list": ({"validation_prompts": 3}, "validation_prompts must be a list"),
    "a prompt for a list": ({"validation_prompts": "a dog"}, "validation_prompts must be a list"),
    "two names of one setting": ({"beta": 1, "beta_dpo": 1}, "are two names of one setting"),
    "half precision without a GPU": ({"mixed_precision": "fp16"}, "needs a GPU: use bf16 or no"),
    "a tracker misspelt": ({"report_to": "tensorbord"}, "report_to must name trackers"),
    "no data": ({"dataset_name": ""}, "dataset_name is empty"),
    "a data file that is not there": ({"dataset_name": "no.parquet"}, "no.parquet"),
    "an empty folder for data": ({"dataset_name": "empty"}, "empty"),
    "text for data": ({"dataset_name": "notes.md"}, "notes.md"),
    "a model that is not there": ({"pretrained_model_name_or_path": "/no/model"}, "/no/model: no such folder"),
    "the network's folder for the pipeline's": ({"pretrained_model_name_or_path": "base/unet"}, "model_index.json"),
    "a column that is not there": ({"columns": ["prompt=text"]}, "text"),
    "columns without a sign": ({"columns": ["caption"]}, "columns must be written as NAME=COLUMN"),
    "layers that are not there": ({"lora_target_modules": ["to_x"]}, "no layer of the network ends in"),
    "lists for pairs": ({"objective": "rankdpo", "beta": 9.0}, "use objective: dpo"),
    "rewards that are not there": ({"objective": "smpo", "beta": 9.0}, "needs a reward for each image"),
    "a checkpoint that is not there": ({"resume_from_checkpoint": "checkpoint-9"}, "no such checkpoint"),
    "another run's checkpoint": ({"resume_from_checkpoint": "old/checkpoint-9"}, "--output_dir old"),
    "an output that is a file": ({"output_dir": "notes.md"}, "is a file: choose a folder"),
    "a weights folder that is not there": ({"network_weights": "no/unet"}, "no/unet"),
}
"""What is changed in a config that works, and what it says."""


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a pipeline and pairs, as a user's."""
    folder = tmp_path_factory.mktemp("world")
    save_pipeline(folder / "base")
    save_pairs(folder / "pairs", count=3)
    (folder / "empty").mkdir()
    (folder / "notes.md").write_text("my pictures\n")
    return folder


@pytest.fixture
def told(world: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """The message with which a command line is refused."""

    def no_step(*arguments: Any) -> None:
        raise AssertionError("a step was taken")

    monkeypatch.setattr(Engine, "step", no_step)
    monkeypatch.setenv("ACCELERATE_USE_CPU", "1")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.chdir(world)

    def tell(line: list[str]) -> str:
        assert cli.main(line) in (1, 2)
        said = capsys.readouterr()
        assert "Traceback" not in said.err + said.out
        error = said.err.partition("\n\nusage:")[0].strip()  # the list of commands follows a wrong one
        assert error.startswith("diffpref: ") and error.count("\n") <= 1
        return error

    return tell


@pytest.mark.parametrize("mistake", FLAGS)
def test_a_wrong_command_line_is_one_line(told, mistake: str) -> None:
    line, message = FLAGS[mistake]
    assert message in told(line.split())


@pytest.mark.parametrize("mistake", KEYS)
def test_a_wrong_config_is_one_line(told, world: Path, mistake: str) -> None:
    changes, message = KEYS[mistake]
    pairs = next(path.name for path in (world / "pairs").iterdir() if path.suffix in (".parquet", ".jsonl", ".csv"))
    values = {
        "pretrained_model_name_or_path": "base",
        "dataset_name": f"pairs/{pairs}",
        "resolution": SIZE,
        "max_train_steps": 1,
        "output_dir": "run",
    }
    (world / "run.yaml").write_text(yaml.safe_dump(values | changes))
    assert message in told(["train", "--config", "run.yaml"])


def test_there_are_forty() -> None:
    assert len(FLAGS) + len(KEYS) >= 40
