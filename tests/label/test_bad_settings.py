"""Settings of a labelling run that cannot work: an error that names the key, before anything is drawn."""

from pathlib import Path

import pytest

from diffpref.label.engine import label
from diffpref.label.settings import from_mapping, parse
from tests.label.world import config_of, lines, make_world, quiet


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"shard_sise": 4}, "world: unknown key 'shard_sise'. Perhaps you meant 'shard_size'"),
        ({"generators": []}, "world: generators is empty"),
        ({"rewards": []}, "world: rewards is empty"),
        ({"rewards": [{"name": "x"}]}, r"rewards\[0\] needs `reward: NAME`"),
        ({"generators": [{"name": "a", "function": "x:y"}]}, "one image per prompt cannot be compared"),
        (
            {"generators": [{"name": "a b", "function": "x:y", "samples": 2}]},
            r"generators\[0\]: the generator name must",
        ),
        ({"generators": [{"name": "a", "samples": 2}]}, r"generators\[0\]: generator 'a' needs either"),
        (
            {"generators": [{"name": "a", "pretrained_model_name_or_path": "x", "call": {"generator": 1}}]},
            "must not set generator",
        ),
        ({"generators": "sdxl"}, "generators must be a list of"),
        ({"packs": [{"name": "p", "form": "triples"}]}, r"packs\[0\]: form must be one of lists, pairs, pickapic"),
        (
            {"packs": [{"name": "p", "min_candidates": 9}]},
            "pack 'p': min_candidates is 9, but a prompt has at most 4 images",
        ),
        ({"weights": {"brigth": 2}}, "weights names the reward 'brigth', but there are bright, red"),
        ({"stages": ["image"]}, "stages must be among .*Perhaps you meant 'images'"),
        ({"executor": "dask"}, "executor must be one of local, ranks, slurm, ray"),
        ({"prompts": ""}, "world: prompts is empty: name a file"),
        (
            {"executor": "ranks", "workers": 2},
            "workers belongs to executor: local or slurm or ray, and this is executor: ranks",
        ),
        (
            {"temperatures": {"red": 2}},
            "temperatures belongs to aggregator: win_prob, and this is aggregator: win_count",
        ),
        ({"aggregator": "win_prob", "temperatures": {"rd": 2}}, "temperatures names the reward 'rd'"),
        (
            {"packs": [{"name": "p", "min_gap": 0.5}]},
            r"packs\[0\]: min_gap belongs to form: pairs or pickapic, and this is form: l",
        ),
        (
            {"generators": [{"name": "a", "function": "x:y", "lora": "z"}]},
            "lora belongs to generator: pipeline, and this is",
        ),
        ({"max_failure_share": 2.0}, r"max_failure_share must be in \[0, 1\]"),
    ],
)
def test_settings_that_cannot_work(tmp_path: Path, change: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        from_mapping({**make_world(tmp_path), **change}, "world")


def test_a_reward_setting_is_checked_before_an_image_is_drawn(tmp_path: Path) -> None:
    config = config_of(tmp_path, rewards=[{"reward": "emoji_hand", "directroy": "x"}])
    with pytest.raises(ValueError, match="unknown key 'directroy'. Perhaps you meant 'directory'"):
        label(config, say=quiet)
    assert not lines(tmp_path / "drawn.log")


def test_the_command_line_needs_a_config() -> None:
    with pytest.raises(ValueError, match="--config needs a YAML file"):
        parse(["--output_dir", "x"])
