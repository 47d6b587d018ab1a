"""What cannot be exported is one line with the remedy, before anything is written."""

import json
import re
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from diffpref.cli import main
from tests import small_edm
from tests.lora_files import matrices, write
from tests.small_sdxl import small_unet

Runs = Callable[..., Path]


def refused(words: Sequence[object], capsys: pytest.CaptureFixture[str], folder: Path) -> str:
    """The one line of an export that ends so, and leaves nothing."""
    before = sorted(folder.rglob("*"))
    assert main(["export", *map(str, words)]) == 1
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("diffpref")]
    assert sorted(folder.rglob("*")) == before
    return line


@pytest.fixture
def lora(tmp_path: Path) -> Path:
    return write(tmp_path / "style.safetensors", matrices(small_unet()), "diffusers", "unet", None)


def test_runs_that_cannot_be_exported(
    runs: Runs, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    run = runs()
    shutil.copytree(run, tmp_path / "stopped", ignore=shutil.ignore_patterns("done.json"))
    for words, said in (
        ([], "name a run to export: diffpref export runs/mine"),
        (["--to", "comfyui"], "name a run to export"),
        ([tmp_path / "nothing"], "no such folder or file, and no name on the hub"),
        ([tmp_path / "stopped"], "holds no finished run"),
        (
            [run, "--to", "comfy"],
            "to must be one of diffusers, comfyui, kohya, peft, checkpoint, .*Perhaps you meant 'comfyui'",
        ),
        ([run, "--to", "kohya", "--merge"], "merge belongs to to: diffusers"),
        ([run, "--rank", "9"], "--rank 9 is above the rank 4 .*leave it out"),
        ([run, "--rank", "0"], "rank must be"),
        ([run, "--weights", "1", "2"], "--weights must have one number for each run, got 2 for 1"),
        ([run, "--to", "kohya", "--output", "out.bin"], "must end in .safetensors"),
        ([run, "--to", "kohya", "--dtype", "int8"], "dtype must be one of float16, bfloat16, float32"),
    ):
        assert re.search(said, line := refused(words, capsys, tmp_path)), line


def test_places_that_are_taken(
    runs: Runs, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    taken = [runs(), "--output", "mine", "--overwrite"]
    assert "a folder that no export has written" in refused(taken, capsys, tmp_path)
    words = ["export", str(runs()), "--output", "out"]
    assert main(words) == 0
    assert "is there already" in refused(words[1:], capsys, tmp_path)
    assert main([*words, "--overwrite"]) == 0


def test_weights_that_do_not_fit(
    runs: Runs, bases: Any, lora: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sdxl, sd3, full = bases("sdxl"), bases("sd3"), runs("sdxl", "full")
    for words, said in (
        ([lora], "came without a run's settings: name the base model that it was trained over with --base"),
        ([lora, "--base", sd3], "another architecture. Name a LoRA for this base model"),
        ([lora, runs("sd3"), "--base", sdxl], "another architecture. Name a LoRA for this base model"),
        ([full, "--to", "kohya"], "is a whole network, .*--to checkpoint"),
        ([full, lora], "only LoRAs can be stacked: export it alone"),
        ([full, "--rank", "2"], "--rank and --weights are for LoRAs"),
        ([full, "--base", sd3], "it is for another architecture|has no weights|has no transformer"),
    ):
        assert re.search(said, line := refused(words, capsys, tmp_path)), line


def test_dora_of_peft_is_refused(bases: Any, lora: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "dora"
    folder.mkdir()
    tensors = {name.replace("unet.", "base_model.model."): tensor for name, tensor in load_file(lora).items()}
    first = next(name for name in tensors if "lora_B" in name)
    more = first.replace("lora_B.weight", "lora_magnitude_vector")
    save_file({**tensors, more: tensors[first][:, 0].contiguous()}, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 4, "use_dora": True}))
    line = refused([folder, "--base", bases("sdxl")], capsys, tmp_path)
    assert "DoRA, LoKr, LoHa and biases are not read. Merge it" in line


def test_a_merge_into_another_base_must_be_asked_for(
    runs: Runs, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from tests import small_sdxl

    run = tmp_path / "run"
    shutil.copytree(runs(), run)
    other = small_sdxl.save_pipeline(tmp_path / "other", seed=9)
    settings = (run / "config.yaml").read_text().splitlines()
    changed = [
        f"pretrained_model_name_or_path: {other}" if line.startswith("pretrained_model") else line for line in settings
    ]
    (run / "config.yaml").write_text("\n".join(changed))
    line = refused([run, "--merge", "--output", tmp_path / "out"], capsys, tmp_path)
    assert "was trained over other weights than" in line and "--base" in line
    assert main(["export", str(run), "--merge", "--output", str(tmp_path / "out"), "--base", str(other)]) == 0
    assert "merged into these all the same" in capsys.readouterr().out


def test_edm_goes_out_as_a_whole_pipeline_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import torch
    from diffusers import DiffusionPipeline

    base = small_edm.save_pipeline(tmp_path / "edm")
    for to in ("kohya", "peft", "comfyui"):
        assert "is a whole network" in refused([base, "--to", to], capsys, tmp_path)
    assert "there is no single-file checkpoint of EDM" in refused([base, "--to", "checkpoint"], capsys, tmp_path)
    assert main(["export", str(base), "--output", str(tmp_path / "out")]) == 0
    one, two = (DiffusionPipeline.from_pretrained(place, trust_remote_code=True) for place in (base, tmp_path / "out"))
    first, second = (pipe.unet.state_dict() for pipe in (one, two))
    assert all(torch.equal(first[name], second[name]) for name in first)
