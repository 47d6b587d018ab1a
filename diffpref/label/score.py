"""Stage `scores`: one reward scores every image of a shard. Adding a reward draws no image again."""

import inspect
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch
from PIL import Image

from diffpref.data.decode import decode
from diffpref.files.identity import file_hash, value_hash
from diffpref.label.entries import RewardUse
from diffpref.label.images import Source, images_markers
from diffpref.label.plan import Plan
from diffpref.label.provenance import versions
from diffpref.label.shards import WEIGHTS, content_of, inputs_of, write_table
from diffpref.label.stages import Failures, Made, Report, Work, count, one_line, shard_of
from diffpref.rewards import REWARDS, CheckedReward, WrongAnswer, find_reward, reward_settings
from diffpref.settings.dotted import is_address, load_callable
from diffpref.settings.typed import read_yaml

HOW = {"batch_size", "concurrency", "endpoint", "api_key_env", "timeout", "retries", "backoff"}
"""Settings of rewards that say how scores are computed, not which: a run may go on with others."""
SCHEMA = pa.schema(
    [("image_id", pa.string()), ("value", pa.float32()), ("status", pa.string()), ("message", pa.string())]
)


def reward_key(use: RewardUse, hashes: Callable[[Path], str] = file_hash) -> str:
    """Names what the scores depend on: the reward, its settings, and the content of the local files they name.

    Raises:
        ValueError: no such reward, an unknown setting, or a local file that does not exist.
    """
    name, settings = use.reward, dict(use.settings)
    if name not in REWARDS and Path(name).suffix in (".yaml", ".yml"):
        settings = {**read_yaml(Path(name)), **settings}
    elif name not in REWARDS and is_address(name):
        source = inspect.getsourcefile(load_callable("reward", name))
        return value_hash([name.rpartition(":")[2], content_of(source, hashes) if source else ""])
    reward_settings(str(settings.get("reward", name)), {k: v for k, v in settings.items() if k != "reward"}, use.name)
    return value_hash([name, _contents(settings, use.name, hashes)])


def _contents(value: Any, name: str, hashes: Callable[[Path], str]) -> Any:
    """The settings, where a path is replaced by what lies there."""
    if isinstance(value, Mapping):
        return {key: _contents(item, name, hashes) for key, item in value.items() if key not in HOW}
    if isinstance(value, list | tuple):
        return [_contents(item, name, hashes) for item in value]
    if isinstance(value, str) and value and len(value) < 1000 and "\n" not in value:
        if Path(value).expanduser().exists():
            return content_of(value, hashes)
        if value.startswith(("/", "./", "../", "~")) or Path(value).suffix in WEIGHTS:
            raise ValueError(f"reward {name!r}: {value} does not exist: correct the path.")
    return value


@dataclass(frozen=True)
class Batch:
    """The images of some prompts: all of a prompt's are together, as rewards that compare need them."""

    ids: list[str]
    images: list[Image.Image]
    prompts: list[str]


@dataclass(frozen=True)
class Score:
    """The scores of one reward."""

    plan: Plan
    reward: RewardUse
    key: str
    """`reward_key` of the reward."""
    max_failure_share: float
    """A shard with a larger share of failures stops the run."""
    keep: bool = True

    @property
    def name(self) -> str:
        return f"scores/{self.reward.name}"

    def images(self, shard: int) -> int:
        return self.plan.count(shard)

    @property
    def settings(self) -> str:
        return self.key

    def inputs(self, shard: int) -> str:
        return inputs_of(images_markers(self.plan, shard))

    def open(self, device: torch.device) -> Work:
        return _Scoring(self, find_reward(self.reward.reward, device, settings=self.reward.settings)).shard


class _Scoring:
    """One worker's reward at work."""

    def __init__(self, stage: Score, reward: CheckedReward) -> None:
        self.stage, self.reward = stage, reward

    def shard(self, number: int, report: Report) -> Made:
        """Score a shard; a score that is not a finite number is kept as null with its status."""
        shard = shard_of(self.stage, number)
        failures = Failures(shard.name, self.stage.images(number), self.stage.max_failure_share)
        rows: list[dict[str, Any]] = []
        for batch in self._batches(number):
            for image_id, value, message in self._scores(batch):
                status = "ok" if math.isfinite(value) else "score_error" if message else "score_nan"
                finite = value if status == "ok" else None
                rows.append({"image_id": image_id, "value": finite, "status": status, "message": message})
                if status != "ok":
                    failures.add(image_id, message or f"the score is {value}")
            report(len(batch.ids))
        write_table(shard.path(".parquet"), pa.Table.from_pylist(rows, schema=SCHEMA))
        reward = {"name": self.reward.name, **self.reward.provenance}
        return Made((".parquet",), count(rows), {"reward": reward, **versions()})

    def _scores(self, batch: Batch) -> Iterator[tuple[str, float, str]]:
        """(id, score, message) of each image; where a batch fails, its prompts are scored apart."""
        try:
            values = self.reward.measure(batch.images, batch.prompts).tolist()
            yield from ((i, v, "") for i, v in zip(batch.ids, values, strict=True))
        except WrongAnswer:
            raise
        except Exception as problem:
            apart = _by_prompt(batch)
            if len(apart) > 1:
                for of_one_prompt in apart:
                    yield from self._scores(of_one_prompt)
            else:
                yield from ((i, math.nan, one_line(problem)) for i in batch.ids)

    def _batches(self, number: int) -> Iterator[Batch]:
        """The images of `batch_prompts` prompts at a time; threads decode the next while these are scored."""
        plan, size = self.stage.plan, self.stage.reward.batch_prompts
        sources = [Source(plan.root, number, generator.name) for generator in plan.generators]
        rows = plan.rows(number)

        def read(prompts: Sequence[tuple[str, str]]) -> Batch:
            batch = Batch([], [], [])
            for prompt_id, prompt in prompts:
                for source in sources:
                    for image_id, status in source.of(prompt_id):
                        if status == "ok":
                            batch.ids.append(image_id)
                            batch.images.append(decode(source.reader.data(image_id)))
                            batch.prompts.append(prompt)
            return batch

        try:
            with ThreadPoolExecutor(1) as ahead:
                chunks = [rows[first : first + size] for first in range(0, len(rows), size)]
                following = ahead.submit(read, chunks[0])
                for chunk in [*chunks[1:], None]:
                    batch = following.result()
                    if chunk is not None:
                        following = ahead.submit(read, chunk)
                    if batch.ids:
                        yield batch
        finally:
            for source in sources:
                source.reader.close()


def _by_prompt(batch: Batch) -> list[Batch]:
    batches: dict[str, Batch] = {}
    for image_id, image, prompt in zip(batch.ids, batch.images, batch.prompts, strict=True):
        own = batches.setdefault(prompt, Batch([], [], []))
        own.ids.append(image_id)
        own.images.append(image)
        own.prompts.append(prompt)
    return list(batches.values())
