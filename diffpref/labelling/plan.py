"""The immutable plan of a run: which pictures of which prompts by which generators, from which seeds.

What the plan holds decides every byte of every picture; it is written once, and a run in its folder that asks for
another one is refused. Rewards, labels and packs are not in it: they may be added and changed at any time.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from diffpref.files import atomic
from diffpref.files.identity import sha256, value_hash
from diffpref.labelling.config import GeneratorSettings, LabelConfig
from diffpref.labelling.generators import check_generator, identity
from diffpref.labelling.prompts import PromptSettings, check_prompts
from diffpref.labelling.shards import FileHashes, write_table

PLAN, PROMPTS, FORMAT = "plan.json", "prompts.parquet", "diffpref-label-1"
_REMEDY = "restore it, or choose another output_dir"


def seed_of(base: int, prompt_id: str, generator: str, sample: int, attempt: int = 0) -> int:
    """The seed of one picture, in [0, 2^63): of what the picture is, so not of batches, workers or the order of work.

    An attempt after the first takes the next seeds."""
    text = f"{base}|{prompt_id}|{generator}|{sample}"
    return (int(sha256(text)[:16], 16) + attempt) % 2**63


@dataclass(frozen=True)
class Planned:
    """One picture to draw."""

    image_id: str
    prompt_id: str
    prompt: str
    sample: int


@dataclass(frozen=True)
class Plan:
    """The plan of a run, as it lies in the run's folder."""

    root: Path
    config: LabelConfig
    generator_keys: Mapping[str, str]
    """Name the pictures of each generator: equal for equal pictures."""
    prompts_key: str
    """Names the kept prompts."""
    prompt_ids: Sequence[str]
    prompts: Sequence[str]

    def __reduce__(self) -> tuple[Any, ...]:
        """To another process goes the folder's name: a million prompts are read there, not sent with each shard."""
        return _arrived, (self.root, self.config, dict(self.generator_keys), self.prompts_key)

    @property
    def shards(self) -> int:
        """How many shards there are."""
        return -(-len(self.prompts) // self.config.run.shard_size)

    def rows(self, shard: int) -> list[tuple[str, str]]:
        """(id, text) of each prompt of a shard."""
        size = self.config.run.shard_size
        part = slice(shard * size, (shard + 1) * size)
        return list(zip(self.prompt_ids[part], self.prompts[part], strict=True))

    def count(self, shard: int) -> int:
        """How many pictures a shard has, of all generators."""
        return len(self.rows(shard)) * self.config.candidates

    def pictures(self, shard: int, generator: GeneratorSettings) -> list[Planned]:
        """The pictures of one generator in a shard, in the order in which they are drawn and kept."""
        return [
            Planned(f"{prompt_id}-{generator.name}-{sample}", prompt_id, prompt, sample)
            for prompt_id, prompt in self.rows(shard)
            for sample in range(generator.samples)
        ]


def make_plan(config: LabelConfig, hashes: FileHashes | None = None) -> Plan:
    """The plan in the run's folder; writes it where there is none.

    Args:
        hashes: of the files of generators and prompts; remembered in the run's folder.

    Raises:
        ValueError: prompts or generators that cannot be used, or another plan in the folder.
    """
    root = config.run.output_dir
    if root.exists() and not root.is_dir():
        raise ValueError(f"output_dir {root} is a file: choose a folder.")
    old = _read(root)
    if old is None and root.is_dir() and any(path.name[0] != "." and path.name != PROMPTS for path in root.iterdir()):
        raise ValueError(f"{root} is not empty and holds no {PLAN}: choose another output_dir, or empty it.")
    hashes = hashes or FileHashes(root)
    now: dict[str, Any] = {
        "format": FORMAT,
        "seed": config.run.seed,
        "shard_size": config.run.shard_size,
        "generators": {g.name: identity(g, hashes) for g in config.generators},
        "prompt_source": _source(config.prompts, hashes),
    }
    for generator in config.generators:
        check_generator(generator)
    if old is not None and old.get("prompt_source") == now["prompt_source"]:
        now["prompts"] = old.get("prompts")
    else:
        checked = check_prompts(config.prompts)
        table = pa.Table.from_pylist([asdict(prompt) for prompt in checked])
        kept = [prompt for prompt in checked if prompt.kept]
        now["prompts"] = value_hash([[prompt.prompt_id, prompt.prompt] for prompt in kept])
        if old is None:
            root.mkdir(parents=True, exist_ok=True)
            write_table(root / PROMPTS, table)
    now = json.loads(json.dumps(now, default=str))
    if old is None:
        atomic.write_json(root / PLAN, now)
    else:
        _compare(root, old, now)
    hashes.save()
    ids, texts = _kept(root, now["prompts"])
    keys = {name: value_hash([now["seed"], identity_]) for name, identity_ in now["generators"].items()}
    return Plan(root, config, keys, now["prompts"], ids, texts)


def _arrived(root: Path, config: LabelConfig, keys: Mapping[str, str], prompts_key: str) -> Plan:
    return Plan(root, config, keys, prompts_key, *_kept_once(root, prompts_key))


@lru_cache(maxsize=1)
def _kept_once(root: Path, expected: str) -> tuple[list[str], list[str]]:
    return _kept(root, expected)


def _kept(root: Path, expected: str) -> tuple[list[str], list[str]]:
    try:
        table = pq.read_table(root / PROMPTS, columns=["prompt_id", "prompt", "kept"])
    except (OSError, pa.ArrowException) as problem:
        raise ValueError(f"{root / PROMPTS} cannot be read ({problem}): {_REMEDY}.") from None
    table = table.filter(table.column("kept"))
    ids, texts = table.column("prompt_id").to_pylist(), table.column("prompt").to_pylist()
    if value_hash([list(pair) for pair in zip(ids, texts, strict=True)]) != expected:
        raise ValueError(f"{root / PROMPTS} was changed after the plan was made: {_REMEDY}.")
    return ids, texts


def _read(root: Path) -> dict[str, Any] | None:
    path = root / PLAN
    if not path.is_file():
        return None
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(value, dict) or value.get("format") != FORMAT:
            raise ValueError("it is no plan of this version")
    except ValueError as problem:
        raise ValueError(f"{path} cannot be used ({problem}): {_REMEDY}.") from None
    return value


def _source(prompts: PromptSettings, hashes: FileHashes) -> str:
    """A digest of the prompt settings and of the files they name; a data set on the hub has its name alone."""
    files = [Path(name).expanduser() for name in (prompts.prompts, *prompts.exclude)]
    return value_hash([asdict(prompts), [hashes(file) if file.is_file() else "" for file in files]])


def _compare(root: Path, old: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Raise where the new plan would draw other pictures."""
    differences = []
    for name in ("seed", "shard_size", "prompts"):
        if old.get(name) != now[name]:
            what = "the kept prompts" if name == "prompts" else f"{name} ({old.get(name)} there, {now[name]} now)"
            differences.append(what)
    before, after = old.get("generators", {}), now["generators"]
    for name in dict.fromkeys([*before, *after]):
        if before.get(name) != after.get(name):
            keys = [k for k in after.get(name, {}) if before.get(name, {}).get(k) != after[name][k]]
            how = "added" if name not in before else "removed" if name not in after else ", ".join(keys)
            differences.append(f"generator {name!r} ({how})")
    if list(before) != list(after) and set(before) == set(after):
        differences.append("the order of the generators")
    if differences:
        raise ValueError(
            f"{root} holds the pictures of another plan; these differ: {'; '.join(differences)}. Choose another "
            "--output_dir, or set them back. Rewards, labels and packs may be changed in place."
        )
