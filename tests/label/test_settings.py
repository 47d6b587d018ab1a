"""Settings of a labelling run: read, overridden, written and read again."""

from pathlib import Path

import pytest
import yaml

from diffpref.demo.embedded import embedded
from diffpref.labelling.score import reward_key
from diffpref.labelling.settings import from_mapping, from_yaml, parse, to_mapping
from tests.label.world import make_world

CONFIGS = sorted(embedded("configs/label").glob("*.yaml"))


def test_written_and_read_again(tmp_path: Path) -> None:
    config = from_mapping(make_world(tmp_path, temperatures={"red": 2}), "world")
    text = yaml.safe_dump(to_mapping(config), sort_keys=False)
    (tmp_path / "label.yaml").write_text(text)
    assert from_yaml(tmp_path / "label.yaml") == config


def test_the_command_line_goes_over_the_file(tmp_path: Path) -> None:
    (tmp_path / "label.yaml").write_text(yaml.safe_dump(make_world(tmp_path)))
    config = parse(
        ["--config", str(tmp_path / "label.yaml"), "--seed", "3", "--aggregator=pareto", "--stages", "images"]
    )
    assert config.run.seed == 3 and config.labels.aggregator == "pareto" and config.run.stages == ("images",)
    assert [g.name for g in config.generators] == ["noise", "other"]


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_every_config_parses_and_comes_back(path: Path) -> None:
    config = from_yaml(path)
    assert from_mapping(to_mapping(config), "again") == config


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_every_config_names_rewards_that_exist(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With settings that they have; no checkpoint is loaded."""
    monkeypatch.chdir(embedded("configs").parent)
    for use in from_yaml(path).rewards:
        assert reward_key(use)
