"""Stage `labels`: filter verdicts and scores become phi and a rank for every picture; needs no GPU and no picture."""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from jaxtyping import Float64

from diffpref.files.identity import value_hash
from diffpref.labelling import generate
from diffpref.labelling.images import images_markers
from diffpref.labelling.plan import Plan
from diffpref.labelling.shards import Marker, Shard, inputs_of, write_table
from diffpref.labelling.stages import Made, Report, Work, count, shard_of
from diffpref.rewards.aggregate import AGGREGATORS, mean_z, ranks


@dataclass(frozen=True)
class Moments:
    """Mean and standard deviation of one reward over the pictures of the data set that take part."""

    mean: float
    std: float


def schema(plan: Plan) -> pa.Schema:
    """The columns of the labels: one row a planned picture."""
    scores = [(f"score.{name}", pa.float32()) for name in plan.config.names]
    own = [("prompt", pa.string()), ("duplicate_of", pa.string()), ("phi", pa.float64()), ("rank", pa.int32())]
    return pa.schema([*((field.name, field.type) for field in generate.SCHEMA), *own, *scores])


def markers_of(plan: Plan, number: int) -> list[Marker]:
    """The markers of everything that the labels of a shard are made from.

    Raises:
        ValueError: a stage that is not done for this shard.
    """
    markers = images_markers(plan, number)
    for stage in ("filter", *(f"scores/{name}" for name in plan.config.names)):
        marker = Shard(plan.root, stage, number).marker()
        if marker is None:
            raise ValueError(f"{plan.root}: {stage} is not done for shard {number:05d}: run that stage first.")
        markers.append(marker)
    return markers


def read_shard(plan: Plan, number: int) -> list[dict[str, Any]]:
    """The rows of a shard before their labels, in the order prompt, generator, sample; verified byte for byte."""
    rows: dict[str, dict[str, Any]] = {}
    texts = dict(plan.rows(number))
    for generator in plan.config.generators:
        shard = Shard(plan.root, f"images/{generator.name}", number)
        shard.verify(".parquet")
        for row in pq.read_table(shard.path(".parquet")).to_pylist():
            rows[row["image_id"]] = {**row, "prompt": texts[row["prompt_id"]], "duplicate_of": ""}
    shard = Shard(plan.root, "filter", number)
    shard.verify()
    for row in pq.read_table(shard.path(".parquet")).to_pylist():
        rows[row["image_id"]] |= {"status": row["status"], "duplicate_of": row["duplicate_of"]}
    for reward in plan.config.rewards:
        name, shard = reward.name, Shard(plan.root, f"scores/{reward.name}", number)
        shard.verify()
        for row in pq.read_table(shard.path(".parquet")).to_pylist():
            mine = rows[row["image_id"]]
            mine[f"score.{name}"] = row["value"]
            if row["status"] != "ok" and mine["status"] == "ok" and not reward.held_out:
                mine |= {"status": row["status"], "message": f"{name}: {row['message'] or 'not a finite number'}"}
    order = {prompt_id: place for place, prompt_id in enumerate(texts)}
    generators = {generator.name: place for place, generator in enumerate(plan.config.generators)}
    return sorted(rows.values(), key=lambda r: (order[r["prompt_id"]], generators[r["generator"]], r["sample"]))


def moments(plan: Plan) -> Mapping[str, Moments]:
    """Mean and standard deviation of each reward over all images that take part, in two sums of float64.

    Reads the filter's verdicts and the scores alone, and no hash: every process of a run does this, and whoever labels
    a shard verifies it.
    """
    sums = {name: (0, 0.0, 0.0) for name in plan.config.names}
    for number in range(plan.shards):
        for name, values in _voting_scores(plan, number).items():
            n, first, second = sums[name]
            # One after the other: NumPy's own sum would round otherwise where shards have another size.
            first, second = (float(np.cumsum([total, *x])[-1]) for total, x in ((first, values), (second, values**2)))
            sums[name] = (n + len(values), first, second)
    found = {}
    for name, (n, first, second) in sums.items():
        mean = first / n if n else 0.0
        spread = math.sqrt(max(second / n - mean * mean, 0.0)) if n else 0.0
        # A reward that is the same everywhere has nothing to say; its z-scores are 0.
        found[name] = Moments(mean, spread if spread > 1e-12 * max(1.0, abs(mean)) else 1.0)
    return found


def _voting_scores(plan: Plan, number: int) -> dict[str, Float64[np.ndarray, " n"]]:
    """The scores of each reward for a shard's images that take part, in the order in which they are kept.

    Raises:
        ValueError: a stage that is not done for this shard, or a file of another size than its marker says.
    """
    markers_of(plan, number)
    verdicts = pq.read_table(Shard(plan.root, "filter", number).path(".parquet"), columns=["image_id", "status"])
    takes_part = np.array(verdicts.column("status").to_pylist()) == "ok"
    scores = {}
    for reward in plan.config.rewards:
        table = pq.read_table(Shard(plan.root, f"scores/{reward.name}", number).path(".parquet"))
        place = pc.call_function(
            "index_in", [verdicts.column("image_id")], pc.SetLookupOptions(table.column("image_id"))
        )
        table = table.take(place)
        scores[reward.name] = table.column("value").cast(pa.float64()).to_numpy()
        if not reward.held_out:
            takes_part &= np.array(table.column("status").to_pylist()) == "ok"
    return {name: values[takes_part & np.isfinite(values)] for name, values in scores.items()}


@dataclass(frozen=True)
class Label:
    """phi and rank of every picture."""

    plan: Plan
    moments: Mapping[str, Moments]
    keep: bool = False

    @property
    def name(self) -> str:
        return "labels"

    def pictures(self, shard: int) -> int:
        return self.plan.count(shard)

    @property
    def settings(self) -> str:
        labels, rewards = self.plan.config.labels, self.plan.config.rewards
        return value_hash(
            [
                [labels.aggregator, labels.weights, labels.temperatures],
                [[reward.name, reward.held_out] for reward in rewards],
                {name: asdict(value) for name, value in self.moments.items()},
            ]
        )

    def inputs(self, shard: int) -> str:
        return inputs_of(markers_of(self.plan, shard))

    def open(self, device: torch.device) -> Work:
        return self._shard

    def _shard(self, number: int, report: Report) -> Made:
        rows = read_shard(self.plan, number)
        ballot = self._ballot()
        for group in _groups(rows):
            ballot.label(group)
        report(len(rows))
        write_table(shard_of(self, number).path(".parquet"), pa.Table.from_pylist(rows, schema=schema(self.plan)))
        return Made((".parquet",), count(rows))

    def _ballot(self) -> "_Ballot":
        """What the labels of every prompt share."""
        labels = self.plan.config.labels
        voting = [reward.name for reward in self.plan.config.rewards if not reward.held_out]

        def per_reward(values: Mapping[str, float]) -> torch.Tensor:
            return torch.tensor([values.get(name, 1.0) for name in voting], dtype=torch.float64)

        spread = {
            "mean": per_reward({name: value.mean for name, value in self.moments.items()}),
            "std": per_reward({name: value.std for name, value in self.moments.items()}),
        }
        more = {"win_prob": {"temperatures": per_reward(labels.temperatures)}, "mean_z": spread}
        weights = per_reward(labels.weights)
        phi = partial(AGGREGATORS[labels.aggregator], weights=weights, **more.get(labels.aggregator, {}))
        return _Ballot(voting, phi, partial(mean_z, weights=weights, **spread))


@dataclass(frozen=True)
class _Ballot:
    """How scores "r k" of the rewards that have a say become the labels of a prompt."""

    voting: list[str]
    phi: Callable[[torch.Tensor], torch.Tensor]
    z: Callable[[torch.Tensor], torch.Tensor]

    def label(self, group: list[dict[str, Any]]) -> None:
        """Set phi and rank of a prompt's pictures that take part, where they are at least two."""
        part = [row for row in group if row["status"] == "ok"]
        for row in group:
            row["phi"] = row["rank"] = None
        if len(part) < 2:
            return
        scores = torch.tensor([[row[f"score.{name}"] for row in part] for name in self.voting], dtype=torch.float64)
        phi = self.phi(scores)
        places = ranks(phi, self.z(scores), [row["image_id"] for row in part])
        for row, value, rank in zip(part, phi.tolist(), places.tolist(), strict=True):
            row["phi"], row["rank"] = value, rank


def _groups(rows: list[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    """The rows of each prompt, which lie together."""
    start = 0
    for place in range(1, len(rows) + 1):
        if place == len(rows) or rows[place]["prompt_id"] != rows[start]["prompt_id"]:
            yield rows[start:place]
            start = place
