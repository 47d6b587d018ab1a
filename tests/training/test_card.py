"""README.md: metadata that the hub reads, a snippet that is Python, a picture that exists, no call to the hub."""

import ast
import re
import socket
from pathlib import Path
from typing import Any, Literal

import pytest
import yaml
from PIL import Image

from diffpref.backbones import Checkpoint
from diffpref.backbones.adapters import ADAPTERS
from diffpref.backbones.edm import EDM
from diffpref.backbones.sd3 import SD3
from diffpref.backbones.sdxl import SDXL
from diffpref.training.card import Base, write_card

PROMPT = 'a "quoted" fox, \\ and | and é'


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("the card asked the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


SDXL_BASE = "stabilityai/stable-diffusion-xl-base-1.0"


def base_of(kind: Any, source: str = SDXL_BASE, *more: str, **rest: Any) -> Base:
    """What a family says of itself, without a checkpoint that is there."""
    checkpoint = Checkpoint(source, *more, **rest)
    return Base(checkpoint=checkpoint, component=kind.component, pipeline=kind.pipeline, call=kind.call)


def card(run: Path, adapter: Literal["lora", "full"] = "lora", **changes: Any) -> tuple[dict[str, Any], str]:
    """The metadata and the text of a fresh card."""
    values: dict[str, Any] = {
        "method": "Diffusion-DPO",
        "objective": {"beta": 2000.0, "note": "a|b\nc"},
        "dataset": "data/pairs.parquet",
        "prompt": PROMPT,
        "versions": {"torch": "2.15.0", "diffusers": "0.42.1"},
    }
    words = ADAPTERS[adapter]().words
    write_card(run, adapter=adapter, words=words, **({"base": base_of(SDXL)} | values | changes))
    _, head, text = (run / "README.md").read_text(encoding="utf-8").split("---\n", 2)
    return yaml.safe_load(head), text


def snippet(text: str) -> str:
    (code,) = re.findall(r"```python\n(.*?)```", text, re.S)
    return code


def test_lora_metadata(tmp_path: Path) -> None:
    data, text = card(tmp_path, dataset="someone/pairs")
    assert data["library_name"] == "diffusers" and data["pipeline_tag"] == "text-to-image"
    assert data["base_model"] == "stabilityai/stable-diffusion-xl-base-1.0"
    assert data["base_model_relation"] == "adapter" and data["datasets"] == ["someone/pairs"]
    assert {"text-to-image", "diffusers", "diffusers-training", "lora", "dpo", "diffpref"} <= set(data["tags"])
    assert len(set(data["tags"])) == len(data["tags"])
    assert "| beta | 2000.0 |" in text and r"| note | a\|b c |" in text and "torch 2.15.0, diffusers 0.42.1." in text


def test_local_folders_stay_out_of_the_metadata(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models" / "tiny").mkdir(parents=True)
    (tmp_path / "data" / "pairs").mkdir(parents=True)
    data, text = card(tmp_path, base=base_of(SDXL, "models/tiny"), dataset="data/pairs", method="RankDPO")
    assert {"base_model", "base_model_relation", "datasets"}.isdisjoint(data)
    assert "`models/tiny`" in text and "rankdpo" in data["tags"]


def names_and_calls(code: str) -> tuple[set[str], list[str]]:
    tree = ast.parse(code)
    imported = {a.name for n in ast.walk(tree) if isinstance(n, ast.ImportFrom) for a in n.names}
    return imported, [
        n.func.attr for n in ast.walk(tree) if isinstance(n, ast.Call) and isinstance(n.func, ast.Attribute)
    ]


def test_the_lora_snippet_is_python_that_diffusers_knows(tmp_path: Path) -> None:
    import diffusers

    code = snippet(card(tmp_path, base=base_of(SDXL, SDXL_BASE, "main", "fp16"))[1])
    imported, calls = names_and_calls(code)
    assert imported <= set(dir(diffusers)) and "load_lora_weights" in calls and "torch_dtype" not in code
    constants = {n.value for n in ast.walk(ast.parse(code)) if isinstance(n, ast.Constant)}
    assert {PROMPT, str(tmp_path), SDXL_BASE} <= constants
    assert 'revision="main", variant="fp16"' in code


@pytest.mark.parametrize("kind", [SDXL, SD3])
def test_the_full_snippet_loads_the_network_that_was_trained(tmp_path: Path, kind: Any) -> None:
    import diffusers

    data, text = card(tmp_path, "full", base=base_of(kind))
    imported, calls = names_and_calls(snippet(text))
    assert imported <= set(dir(diffusers)) and "load_lora_weights" not in calls
    assert f'(folder, subfolder="{kind.component}"' in text and f"{kind.component}=network" in text
    assert "lora" not in data["tags"] and data["base_model_relation"] == "finetune"


def test_a_lora_over_other_weights_names_them_as_its_base(tmp_path: Path) -> None:
    (tmp_path / "weights" / "unet").mkdir(parents=True)
    over = base_of(SDXL, network_weights=tmp_path / "weights")
    data, text = card(tmp_path, base=over)
    assert "base_model" not in data and f"`{SDXL_BASE}` with the network of `{tmp_path / 'weights'}`" in text
    assert f'AutoModel.from_pretrained("{tmp_path / "weights"}", subfolder="unet"' in text and "unet=network" in text
    # All weights are trained from there, and replace it.
    data, text = card(tmp_path, "full", base=over)
    assert data["base_model"] == SDXL_BASE and str(tmp_path / "weights") not in text


def test_edm_is_loaded_by_its_own_pipeline(tmp_path: Path) -> None:
    code = snippet(card(tmp_path, "full", base=base_of(EDM, "models/edm"))[1])
    assert "from diffpref.pipelines.edm import EDMPipeline" in code and "= EDMPipeline.from_pretrained(" in code


def test_pairs_become_one_picture(tmp_path: Path) -> None:
    pairs = tmp_path / "samples" / "pairs"
    pairs.mkdir(parents=True)
    for i in range(8):
        Image.new("RGB", (512, 512), "red").save(pairs / f"{i:03d}-before.png")
        Image.new("RGB", (512, 512), "blue").save(pairs / f"{i:03d}-after.png")
    _, text = card(tmp_path)
    (path,) = re.findall(r"!\[.*?\]\((.*?)\)", text)
    with Image.open(tmp_path / path) as sheet:
        assert 6 * 320 < sheet.width < 7 * 320  # six pairs and the names of the rows


def test_first_and_last_grid_stand_in_for_pairs(tmp_path: Path) -> None:
    (tmp_path / "samples").mkdir()
    assert "![" not in card(tmp_path)[1]
    for step in (0, 50, 100):
        Image.new("RGB", (8, 8)).save(tmp_path / "samples" / f"step-{step:06d}.png")
    assert re.findall(r"!\[.*?\]\((.*?)\)", card(tmp_path)[1]) == ["samples/step-000000.png", "samples/step-000100.png"]


def test_a_second_card_replaces_the_first(tmp_path: Path) -> None:
    card(tmp_path, method="D3PO")
    data, text = card(tmp_path, method="DDO")
    assert "D3PO" not in text and "ddo" in data["tags"] and "d3po" not in data["tags"]
