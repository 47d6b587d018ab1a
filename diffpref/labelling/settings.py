"""The settings of a labelling run read from YAML and the command line, and written back."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from diffpref.labelling.config import GeneratorSettings, LabelConfig, Labels, PackSettings, RewardUse, Run
from diffpref.labelling.prompts import PromptSettings
from diffpref.settings.typed import build, convert, nearest, read_yaml

GROUPS: Mapping[str, type] = {"prompts": PromptSettings, "labels": Labels, "run": Run}
"""Groups whose fields are flat keys of the YAML file and flags of the command line."""


def from_mapping(values: Mapping[str, Any], where: str) -> LabelConfig:
    """The settings; flat keys but for the lists `generators`, `rewards` and `packs`.

    Raises:
        ValueError: an unknown key, a wrong type, or settings that cannot work together; names `where` and the key.
    """
    values = dict(values)
    lists = {name: _entries(values.pop(name, []), f"{where}: {name}") for name in ("generators", "rewards", "packs")}
    given: dict[str, dict[str, Any]] = {group: {} for group in GROUPS}
    owner = {f.name: group for group, kind in GROUPS.items() for f in fields(kind)}
    for key, value in values.items():
        if key not in owner:
            raise ValueError(f"{where}: unknown key {key!r}.{nearest(key, [*owner, *lists])}")
        given[owner[key]][key] = value
    if not given["prompts"].get("prompts"):
        raise ValueError(f"{where}: prompts is missing: name a file of prompts, one a line.")
    packs = tuple(build(PackSettings, v, f"{where}: packs[{i}]") for i, v in lists["packs"])
    try:
        return LabelConfig(
            build(PromptSettings, given["prompts"], where),
            tuple(build(GeneratorSettings, v, f"{where}: generators[{i}]") for i, v in lists["generators"]),
            tuple(_reward(v, f"{where}: rewards[{i}]") for i, v in lists["rewards"]),
            packs or (PackSettings("lists"),),
            build(Labels, given["labels"], where),
            build(Run, given["run"], where),
        )
    except ValueError as problem:
        raise ValueError(str(problem) if str(problem).startswith(where) else f"{where}: {problem}") from None


def _entries(value: Any, where: str) -> list[tuple[int, Mapping[str, Any]]]:
    if not isinstance(value, Sequence) or isinstance(value, str) or not all(isinstance(v, Mapping) for v in value):
        raise ValueError(f"{where} must be a list of `- name: ...` entries, got {value!r:.80}.")
    return list(enumerate(value))


def _reward(values: Mapping[str, Any], where: str) -> RewardUse:
    """The entry's own keys apart from the reward's settings, which stand beside them."""
    if not isinstance(values.get("reward"), str):
        raise ValueError(f"{where} needs `reward: NAME`.")
    settings = dict(values)
    own = {key: settings.pop(key) for key in ("name", "reward", "held_out", "batch_prompts") if key in settings}
    own.setdefault("name", own["reward"])
    try:
        convert(own["name"], str)
    except TypeError as rule:
        raise ValueError(f"{where}: name must be {rule}, got {own['name']!r}.") from None
    return build(RewardUse, {**own, "settings": settings}, where)


def from_yaml(path: Path) -> LabelConfig:
    """The settings of a YAML file; raises ValueError naming the file and key where it is wrong."""
    return from_mapping(read_yaml(path), str(path))


def to_mapping(config: LabelConfig) -> dict[str, Any]:
    """The flat keys and lists of a config, ready for YAML: `from_mapping` gives the same config back."""
    flat: dict[str, Any] = {}
    for group in GROUPS:
        part = getattr(config, group)
        flat.update({f.name: _plain(getattr(part, f.name)) for f in fields(part)})
    for name in ("generators", "packs"):
        flat[name] = [{f.name: _plain(getattr(e, f.name)) for f in fields(e)} for e in getattr(config, name)]
    flat["rewards"] = [
        {
            "name": r.name,
            "reward": r.reward,
            "held_out": r.held_out,
            "batch_prompts": r.batch_prompts,
            **_plain(r.settings),
        }
        for r in config.rewards
    ]
    return flat


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value


def parse(arguments: Sequence[str], prog: str = "diffpref label") -> LabelConfig:
    """The settings of a command line: `--config FILE` first, then every `--key value` over it.

    Generators, rewards and packs are lists, and stand in the file alone."""
    import tyro

    given = [part for a in arguments for part in (a.split("=", 1) if a[:2] == "--" else [a])]
    if "--config" not in given and not {"-h", "--help"} & set(given):
        raise ValueError("--config needs a YAML file: --config configs/label/tiny.yaml.")
    base, rest = None, list(given)
    if "--config" in given:
        place = given.index("--config")
        if place + 1 == len(given):
            raise ValueError("--config needs a YAML file: --config configs/label/tiny.yaml.")
        base = from_yaml(Path(given[place + 1]))
        rest = given[:place] + given[place + 2 :]
    default = Flat(base.prompts, base.labels, base.run) if base else Flat(PromptSettings(""))
    flat = tyro.conf.configure(tyro.conf.OmitArgPrefixes, tyro.conf.FlagConversionOff)(Flat)
    text = "Make preference data: pictures of prompts by generators, scored by rewards. The lists generators, rewards "
    text += "and packs stand in the file of --config; every other key is a flag too."
    found = tyro.cli(flat, args=rest, default=default, prog=prog, description=text)
    assert base is not None, "help exits"
    return replace(base, prompts=found.prompts, labels=found.labels, run=found.run)


@dataclass(frozen=True)
class Flat:
    """What the command line can change."""

    prompts: PromptSettings
    labels: Labels = field(default_factory=Labels)
    run: Run = field(default_factory=Run)
