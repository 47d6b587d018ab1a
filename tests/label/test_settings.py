"""Settings of a labelling run: read, overridden, written and read again."""

from pathlib import Path

import pytest
import yaml

from diffpref.files.embedded import embedded
from diffpref.label.executors.local import Local
from diffpref.label.executors.ranks import Ranks
from diffpref.label.executors.ray import Ray
from diffpref.label.executors.slurm import Slurm
from diffpref.label.score import reward_key
from diffpref.label.settings import from_mapping, from_yaml, parse, to_mapping
from diffpref.rewards.aggregators import Pareto
from tests.label.world import make_world

CONFIGS = sorted(embedded("configs/label").glob("*.yaml"))


def test_written_and_read_again(tmp_path: Path) -> None:
    config = from_mapping(make_world(tmp_path, aggregator="win_prob", temperatures={"red": 2}), "world")
    text = yaml.safe_dump(to_mapping(config), sort_keys=False)
    (tmp_path / "label.yaml").write_text(text)
    assert from_yaml(tmp_path / "label.yaml") == config


def test_the_command_line_goes_over_the_file(tmp_path: Path) -> None:
    (tmp_path / "label.yaml").write_text(yaml.safe_dump(make_world(tmp_path)))
    config = parse(
        ["--config", str(tmp_path / "label.yaml"), "--seed", "3", "--aggregator=pareto", "--stages", "images"]
    )
    assert config.run.seed == 3 and config.aggregator == Pareto() and config.run.stages == ("images",)
    assert [g.name for g in config.generators] == ["noise", "other"]


def test_help_needs_no_file(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        parse(["--help"])
    text = capsys.readouterr().out
    assert end.value.code == 0 and "--prompts" in text and "--aggregator" in text and "--workers" in text


def test_another_executor_begins_with_its_own_defaults(tmp_path: Path) -> None:
    """Two local processes are no two SLURM tasks; threads, which decide bytes, stay for every executor."""
    (tmp_path / "label.yaml").write_text(yaml.safe_dump(make_world(tmp_path, workers=2, threads_per_worker=1)))
    file = ["--config", str(tmp_path / "label.yaml")]
    for flags, executor in (
        ([], Local(workers=2)),
        (["--executor", "ranks"], Ranks()),
        (["--executor", "slurm"], Slurm()),
        (["--executor", "slurm", "--workers", "3"], Slurm(workers=3)),
        (["--executor", "ray", "--gpus_per_worker", "0.5"], Ray(gpus_per_worker=0.5)),
    ):
        config = parse([*file, *flags])
        assert config.executor == executor and config.run.threads_per_worker == 1
    with pytest.raises(ValueError, match="workers belongs to executor: local or slurm or ray, and this is executor: r"):
        parse([*file, "--executor", "ranks", "--workers", "3"])


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
