"""Settings: YAML and command line to frozen groups and back, errors that name key, file and rule, no idle field."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import yaml

from diffpref.training.config import ALIASES, TrainConfig
from diffpref.training.settings import from_mapping, from_yaml, to_mapping

ROOT = Path(__file__).parent.parent
CONFIGS = sorted(f for f in (ROOT / "configs").rglob("*.yaml") if f.parent.name not in ("label", "reward"))
TRAINING = [path for path in CONFIGS if path.parent.name != "accelerate"]


@pytest.mark.parametrize("path", TRAINING, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_every_config_in_the_repository_parses_and_survives_a_round_trip(path: Path, tmp_path: Path) -> None:
    config = from_yaml(path)
    again = tmp_path / "config.yaml"
    again.write_text(yaml.safe_dump(to_mapping(config), sort_keys=False, allow_unicode=True), encoding="utf-8")
    assert from_yaml(again) == config
    given = yaml.safe_load(path.read_text(encoding="utf-8"))
    method = path.stem.split("-")[0]
    assert given["objective"] == {"inpo": "dpo"}.get(method, method), "the file is named after its method"
    assert (given.get("probe") == "inversion") == (method in ("inpo", "smpo"))
    flat = to_mapping(config)
    assert all(flat[ALIASES.get(key, key)] == value for key, value in given.items()), "each key arrives unchanged"


def test_there_are_configs() -> None:
    assert {f"{path.parent.name}/{path.name}" for path in TRAINING} >= {"sdxl/dpo.yaml", "tiny-sdxl/dpo.yaml"}


def test_a_round_trip_keeps_every_kind_of_value() -> None:
    config = from_mapping(
        {
            "beta": 2500.5,
            "validation_prompts": ["a fox, at night", "naïve café"],
            "columns": ["prompt=my_caption"],
            "cache_dir": "/somewhere/else",
            "max_train_samples": 12,
            "random_flip": True,
            "mixed_precision": "bf16",
            "revision": "None",
        },
        "here",
    )
    assert config.data.cache_dir == Path("/somewhere/else") and config.data.max_train_samples == 12
    assert config.validation.validation_prompts == ("a fox, at night", "naïve café")
    text = yaml.safe_dump(to_mapping(config), allow_unicode=True)
    assert from_mapping(yaml.safe_load(text), "there") == config
    assert from_mapping(to_mapping(TrainConfig()), "defaults") == TrainConfig()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("learning_rate: 1e-5", {"learning_rate": 1e-5}),
        ("learning_rate: 1.0e-5", {"learning_rate": 1e-5}),
        ("beta: 5000", {"beta": 5000.0}),
        ("mixed_precision: no", {"mixed_precision": "no"}),
        ("mixed_precision: 'no'", {"mixed_precision": "no"}),
        ("max_train_samples: null", {"max_train_samples": None}),
        ("checkpoints_total_limit:", {"checkpoints_total_limit": None}),
        ("validation_prompts: [a, b]", {"validation_prompts": ["a", "b"]}),
        ("validation_prompts:\n  - é", {"validation_prompts": ["é"]}),
        ("validation_prompts: []", {"validation_prompts": []}),
        ("random_flip: yes", {"random_flip": True}),
        ("output_dir: runs/x", {"output_dir": "runs/x"}),
        ("beta_dpo: 2000", {"beta": 2000.0}),
        ("train_data_dir: pairs", {"dataset_name": "pairs"}),
        ("validation_prompt: [one]", {"validation_prompts": ["one"]}),
    ],
)
def test_yaml_values(written, text: str, expected: dict[str, Any]) -> None:
    flat = to_mapping(from_yaml(written(text)))
    for key, value in expected.items():
        assert flat[key] == value and type(flat[key]) is type(value)


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("learnig_rate: 1", ["unknown key 'learnig_rate'", "'learning_rate'"]),
        ("beta_dop: 1", ["unknown key 'beta_dop'", "'beta_dpo'"]),
        ("objectiv: dpo", ["unknown key 'objectiv'", "'objective'"]),
        ("qqqqqq: 1", ["unknown key 'qqqqqq'."]),
        ("7: 1", ["unknown key '7'."]),
        ("rank: many", ["rank must be a whole number, got 'many'"]),
        ("rank: 8.0", ["rank must be a whole number, got 8.0"]),
        ("rank: true", ["rank must be a whole number, got True"]),
        ("rank: null", ["rank must be a whole number, got None"]),
        ("max_train_samples: all", ["max_train_samples must be a whole number, got 'all'"]),
        ("learning_rate: fast", ["learning_rate must be a number, got 'fast'"]),
        ("learning_rate: true", ["learning_rate must be a number, got True"]),
        ("random_flip: 1", ["random_flip must be true or false, got 1"]),
        ("dataset_name: 5", ["dataset_name must be text, got 5"]),
        ("cache_dir: 5", ["cache_dir must be a path, got 5"]),
        ("validation_prompts: a fox", ["validation_prompts must be a list, got 'a fox'"]),
        ("validation_prompts: [1, 2]", ["validation_prompts must be a list of text, got [1, 2]"]),
        ("adapter: dora", ["adapter must be one of lora, full, or your own as", "got 'dora'"]),
        ("adapter: no", ["adapter must be one of lora, full, or your own as", "got False"]),
        ("adapter: [lora]", ["adapter must be one of lora, full"]),
        ("beta_dpo: big", ["beta_dpo must be a number"]),
        ("objective: ppo", ["objective must be one of dpo, smpo, rankdpo, d3po, ddo, or your own as", "got 'ppo'"]),
        ("gamma: 3", ["gamma belongs to objective: smpo, and this is objective: dpo. Set objective: smpo, or leave"]),
        ("method: ppo", ["method must be one of dpo, inpo, smpo, rankdpo, d3po, ddo, got 'ppo'"]),
        ("objective: [dpo]", ["objective must be one of", "got ['dpo']"]),
        ("beta: -1", ["beta must be above 0, got -1"]),
        ("beta: .nan", ["beta must be above 0, got nan"]),
        ("anchor: -0.5", ["anchor must be 0 or above, got -0.5"]),
        ("sft: -0.5", ["sft must be 0 or above, got -0.5"]),
        ("beta: 1\nbeta_dpo: 2", ["beta_dpo and beta are two names of one setting"]),
        ("- a\n- b", ["must hold `key: value` lines"]),
        ("", ["must hold `key: value` lines"]),
        ("a: [", ["is no valid YAML"]),
    ],
)
def test_errors_name_the_file_the_key_and_the_rule(written, text: str, parts: list[str]) -> None:
    path = written(text)
    with pytest.raises(ValueError) as problem:
        from_yaml(path)
    for part in [str(path), *parts]:
        assert part in str(problem.value)


def test_a_file_that_is_missing_or_in_another_encoding_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="absent.yaml: no such config file"):
        from_yaml(tmp_path / "absent.yaml")
    (tmp_path / "latin.yaml").write_bytes("output_dir: caf\xe9".encode("latin-1"))
    with pytest.raises(ValueError, match="latin.yaml is no valid YAML"):
        from_yaml(tmp_path / "latin.yaml")


def test_from_mapping_changes_the_given_keys_alone() -> None:
    base = from_mapping({"beta": 7, "rank": 3}, "base")
    changed = from_mapping({"rank": 4}, "change", base)
    assert changed == dataclasses.replace(base, adapter=dataclasses.replace(base.adapter, rank=4))
    assert base.adapter.rank == 3
