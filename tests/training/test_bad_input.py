"""Bad input through the command line: status 1, one message that names what and the remedy, and no step."""

import dataclasses
import importlib.util
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import datasets
import pytest
import torch
import yaml
from PIL import Image

from diffpref import cli
from diffpref.engine.step import Engine
from diffpref.objectives import DPO
from diffpref.probes import Forward
from diffpref.sources.dataset import Dataset
from diffpref.training.settings import to_mapping
from tests.small_sdxl import save_pairs

Settings = Callable[..., Any]


@pytest.fixture
def refused(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., str]:
    """The message with which `diffpref train` refuses these keys of a config file."""

    def no_step(*arguments: Any) -> None:
        raise AssertionError("a step was taken")

    monkeypatch.setattr(Engine, "step", no_step)

    def go(*flags: str, without: Sequence[str] = (), **changes: Any) -> str:
        values = {key: value for key, value in to_mapping(settings()).items() if key not in without}
        (tmp_path / "config.yaml").write_text(yaml.safe_dump(values | changes))
        status = cli.main(["train", "--config", str(tmp_path / "config.yaml"), *flags])
        captured = capsys.readouterr()
        assert status == 1, captured
        assert captured.err.startswith("diffpref: error: ") and "Traceback" not in captured.err + captured.out
        (line,) = captured.err.strip().splitlines()
        # The next try must not be told that the folder holds another run.
        assert not (tmp_path / "run" / "config.yaml").exists()
        return line

    return go


class Case(NamedTuple):
    changes: dict[str, Any]
    message: str


VALUES = {
    "unknown key": Case({"learning_rat": 1e-4}, "unknown key 'learning_rat'. Perhaps you meant 'learning_rate'"),
    "text for a number": Case({"max_train_steps": "many"}, "max_train_steps must be a whole number, got 'many'"),
    "number for a list": Case({"validation_prompts": 3}, "validation_prompts must be a list, got 3"),
    "unknown choice": Case({"adapter": "dora"}, "adapter must be one of lora, full, or your own as"),
    "unknown objective": Case({"objective": "dop"}, "objective must be one of"),
    "negative beta": Case({"beta": -1.0}, "beta must be above 0, got -1.0"),
    "zero steps": Case({"max_train_steps": 0}, "max_train_steps must be above 0, got 0"),
    "rate that is no number": Case({"learning_rate": float("nan")}, "learning_rate must be above 0, got nan"),
    "zero rank": Case({"rank": 0}, "rank must be 1 or above, got 0"),
    "zero limit": Case({"checkpoints_total_limit": 0}, "checkpoints_total_limit must be 1 or above, got 0"),
    "zero validation": Case({"validation_steps": 0}, "validation_steps must be 1 or above, got 0"),
    "share above 1": Case({"proportion_empty_prompts": 1.5}, "proportion_empty_prompts must be in [0, 1], got 1.5"),
    "resolution": Case({"resolution": 36}, "resolution must be a multiple of 8, got 36"),
    "no data": Case({"dataset_name": ""}, "dataset_name is empty"),
    "no model": Case({"pretrained_model_name_or_path": ""}, "pretrained_model_name_or_path is empty"),
    "missing model": Case(
        {"pretrained_model_name_or_path": "/nowhere/model"}, "/nowhere/model: no such folder, and no name on the hub"
    ),
    "missing data": Case({"dataset_name": "/nowhere/pairs.parquet"}, "/nowhere/pairs.parquet"),
    "columns": Case({"columns": ["caption"]}, "columns must be written as NAME=COLUMN, like prompt=my_caption"),
    "one column twice": Case({"columns": ["prompt=a", "prompt=b"]}, "columns names prompt twice (a and b): keep one"),
    "unknown column": Case({"columns": ["prompt=my_caption"]}, "my_caption"),
    "unknown tracker": Case({"report_to": "tensorbord"}, "report_to must name trackers"),
    "LoRA targets": Case({"lora_target_modules": ["to_x"]}, "no layer of the network ends in ['to_x']"),
    "missing checkpoint": Case({"resume_from_checkpoint": "checkpoint-7"}, "checkpoint-7: no such checkpoint"),
}


@pytest.mark.parametrize("case", VALUES)
def test_values(refused: Callable[..., str], case: str) -> None:
    assert VALUES[case].message in refused(**VALUES[case].changes)


def test_xformers_needs_a_gpu(refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert "needs a CUDA GPU" in refused(enable_xformers_memory_efficient_attention=True)


def test_fp16_needs_a_gpu(refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    assert "mixed_precision fp16 needs a GPU: use bf16 or no" in refused(mixed_precision="fp16")


def test_bitsandbytes_is_named(refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "bitsandbytes" else find(name))
    assert "pip install 'diffpref[bitsandbytes]'" in refused(optimizer="adamw_8bit")


def test_a_full_disk_is_found_before_encoding(refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: shutil._ntuple_diskusage(2**40, 2**40, 2**20))
    assert "GiB free. Free some space" in refused()


def test_an_output_that_is_a_file(refused: Callable[..., str], tmp_path: Path) -> None:
    (tmp_path / "run").write_text("")
    assert "is a file: choose a folder" in refused()


def test_an_output_of_another_run(settings: Settings, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").write_text("seed: 5\n")
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(to_mapping(settings())))
    assert cli.main(["train", "--config", str(tmp_path / "config.yaml")]) == 1
    assert "--resume_from_checkpoint latest" in capsys.readouterr().err
    assert (tmp_path / "run" / "config.yaml").read_text() == "seed: 5\n"


def test_a_missing_config_file(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["train", "--config", "/nowhere.yaml"]) == 1
    assert "/nowhere.yaml: no such config file" in capsys.readouterr().err


def test_an_unknown_flag(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["train", "--learning_rat", "1e-4"]) == 1
    assert "unknown key 'learning_rat'. Perhaps you meant 'learning_rate'" in capsys.readouterr().err


def test_a_folder_that_is_no_pipeline(refused: Callable[..., str], base: Path, tmp_path: Path) -> None:
    assert "has no model_index.json" in refused(pretrained_model_name_or_path=str(base / "unet"))
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "model_index.json").write_text('{"_class_name": "FluxPipeline"}')
    message = refused(pretrained_model_name_or_path=str(tmp_path / "other"))
    assert "is a FluxPipeline; supported pipelines are StableDiffusionXLPipeline" in message


def test_a_pipeline_without_weights(refused: Callable[..., str], base: Path, tmp_path: Path) -> None:
    shutil.copytree(base, tmp_path / "base")
    for file in (tmp_path / "base" / "unet").glob("*.safetensors"):
        file.unlink()
    assert f"found in directory {tmp_path / 'base'}" in refused(pretrained_model_name_or_path=str(tmp_path / "base"))


def replace_picture(data: Path, how: str) -> None:
    picture = data.parent / "rejected-2.png"
    if how == "missing":
        picture.unlink()
    elif how == "empty":
        picture.write_bytes(b"")
    elif how == "cut short":
        picture.write_bytes(picture.read_bytes()[:-900])
    elif how == "text":
        picture.write_text("no picture")
    else:
        Image.new("RGB", (40, 32)).save(picture)


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("missing", "does not exist"),
        ("empty", "is empty (0 bytes)"),
        ("cut short", "is corrupt or cut short"),
        ("text", "is not an image"),
        ("of another size", "32x32, 40x32 pixels"),
    ],
)
def test_pictures(refused: Callable[..., str], tmp_path: Path, how: str, message: str) -> None:
    data = save_pairs(tmp_path / "data", count=4)
    replace_picture(data, how)
    line = refused(dataset_name=str(data))
    assert message in line and "row 2" in line


def rows(folder: Path, change: Callable[[dict[str, Any]], dict[str, Any]]) -> str:
    """Scored pairs, each changed."""
    save_pairs(folder, count=3)
    records = [
        change({"prompt": "a dog", "images": [f"chosen-{i}.png", f"rejected-{i}.png"], "scores": [1.0, 0.0]})
        for i in range(3)
    ]
    datasets.Dataset.from_list(records).to_parquet(folder / "scored.parquet")
    return str(folder / "scored.parquet")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"prompt": "  "}, "prompt is empty: write a caption"),
        ({"scores": [1.0, 1.0]}, "3 tie"),
        ({"scores": [float("nan"), 0.0]}, "must be a finite number"),
        ({"scores": [1.0]}, "images has 2 entries and scores 1"),
    ],
    ids=["empty caption", "all ties", "NaN score", "missing score"],
)
def test_rows(refused: Callable[..., str], tmp_path: Path, change: dict[str, Any], message: str) -> None:
    line = refused(dataset_name=rows(tmp_path / "data", lambda row: row | change))
    assert message in line


def test_bad_rows_can_be_left_out_and_are_counted(
    settings: Settings, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = save_pairs(tmp_path / "data", count=4)
    replace_picture(data, "missing")
    values = to_mapping(settings(dataset_name=str(data), on_bad_row="skip", max_train_steps=1))
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(values))
    assert cli.main(["train", "--config", str(tmp_path / "config.yaml")]) == 0
    assert "4 rows, 3 kept, 1 dropped (1 missing image)" in capsys.readouterr().out


METHODS = {
    "RankDPO on pairs": Case({"objective": "rankdpo", "beta": 2000.0}, "use objective: dpo"),
    "SmPO on labels": Case({"objective": "smpo", "beta": 2000.0}, "needs a reward for each image"),
    "DPO on chains": Case({"probe": "transition"}, "set probe: forward or inversion"),
    "D3PO on noise": Case({"objective": "d3po", "labels": "person"}, "set probe: transition"),
    "D3PO without labels": Case({"objective": "d3po", "probe": "transition"}, "on-policy chains need labels"),
    "D3PO of one chain": Case(
        {"objective": "d3po", "probe": "transition", "labels": "person", "chains_per_prompt": 1},
        "chains_per_prompt must be 2 or above, got 1",
    ),
    "DDO without pictures": Case({"objective": "ddo", "dataset_name": ""}, "DDO needs real images"),
    "kept noise": Case({"stored_inversions": 2}, "stored_inversions belongs to probe: inversion"),
}


@pytest.mark.parametrize("case", METHODS)
def test_methods(refused: Callable[..., str], case: str) -> None:
    changes = METHODS[case].changes
    # The fields of the default objective, probe and source are no keys of the others.
    own = ("source", *(field.name for member in (DPO, Forward, Dataset) for field in dataclasses.fields(member)))
    assert METHODS[case].message in refused(without=own, **changes)


@pytest.mark.parametrize("images", [1, 2])
def test_rows_that_prefer_nothing(refused: Callable[..., str], tmp_path: Path, images: int) -> None:
    def cut(row: dict[str, Any]) -> dict[str, Any]:
        return row | {"images": row["images"][:images], "scores": [1.0] * images}

    line = refused(dataset_name=rows(tmp_path / "data", cut), objective="rankdpo", without=("beta", "anchor", "sft"))
    assert ("needs at least two" if images == 1 else "3 tie") in line
