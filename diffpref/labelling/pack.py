"""Stage `packs`: labelled pictures as parquet files that training reads: lists, pairs, Pick-a-Pic columns."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch

from diffpref.data.convert import RECORD_FORMS
from diffpref.data.rows import Row
from diffpref.files.identity import hash_bit, value_hash
from diffpref.labelling.config import PackSettings
from diffpref.labelling.images import TarReader, images_markers
from diffpref.labelling.plan import Plan
from diffpref.labelling.shards import Shard, durable, inputs_of
from diffpref.labelling.stages import Made, Report, Work, shard_of

_GROUP_BYTES = 64 * 2**20
"""About how many bytes of pictures a row group holds."""


@dataclass(frozen=True)
class Pack:
    """One data set for training."""

    plan: Plan
    pack: PackSettings
    keep: bool = False

    @property
    def name(self) -> str:
        return f"packs/{self.pack.name}"

    def pictures(self, shard: int) -> int:
        return self.plan.count(shard)

    @property
    def settings(self) -> str:
        return value_hash([asdict(self.pack), self.plan.config.candidates])

    def inputs(self, shard: int) -> str:
        labels = Shard(self.plan.root, "labels", shard).marker()
        if labels is None:
            raise ValueError(f"{self.plan.root}: shard {shard:05d} has no labels: run the stage labels first.")
        return inputs_of([labels, *images_markers(self.plan, shard)])

    def open(self, device: torch.device) -> Work:
        return self._shard

    def _shard(self, number: int, report: Report) -> Made:
        shard = shard_of(self, number)
        labels = Shard(self.plan.root, "labels", number)
        labels.verify()
        readers = {}
        for generator in self.plan.config.generators:
            source = Shard(self.plan.root, f"images/{generator.name}", number)
            source.verify()
            readers[generator.name] = TarReader(source.path(".tar"))
        table = pq.read_table(labels.path(".parquet"))
        ranked: dict[str, list[dict[str, Any]]] = {prompt_id: [] for prompt_id, _ in self.plan.rows(number)}
        for row in table.to_pylist():
            if row["phi"] is not None:
                ranked[row["prompt_id"]].append(row)
        columns = RECORD_FORMS[self.pack.form].schema(_more_columns(self.pack.form, self.plan.config.names))
        written = dropped = 0
        with durable(shard.path(".parquet")) as path, pq.ParquetWriter(path, columns, compression="none") as writer:
            batch: list[dict[str, object]] = []
            size = 0
            for rows in ranked.values():
                rows.sort(key=lambda row: row["rank"])
                records = list(self._records(rows, readers))
                dropped += not records
                written += len(records)
                batch += records
                size += sum(_bytes(record) for record in records)
                if size > _GROUP_BYTES:
                    writer.write_table(pa.Table.from_pylist(batch, schema=columns))
                    batch, size = [], 0
                report(self.plan.config.candidates)
            if batch:
                writer.write_table(pa.Table.from_pylist(batch, schema=columns))
        for reader in readers.values():
            reader.close()
        return Made((".parquet",), {"rows": written, "prompts without a row": dropped})

    def _records(self, rows: list[dict[str, Any]], readers: Mapping[str, TarReader]) -> Iterator[dict[str, object]]:
        """The records of one prompt, whose rows are best first."""

        def record(some: Sequence[dict[str, Any]]) -> dict[str, object]:
            pictures = tuple(readers[row["generator"]].data(row["image_id"]) for row in some)
            phi, models = tuple(row["phi"] for row in some), tuple(row["generator"] for row in some)
            row = Row(prompt=some[0]["prompt"], images=pictures, scores=phi, where="", models=models)
            return RECORD_FORMS[self.pack.form].record(row)

        if self.pack.form == "lists":
            if len(rows) >= (self.pack.min_candidates or self.plan.config.candidates):
                ids = {"prompt_id": rows[0]["prompt_id"], "image_ids": [row["image_id"] for row in rows]}
                rewards = {f"score.{name}": [r[f"score.{name}"] for r in rows] for name in self.plan.config.names}
                yield record(rows) | ids | rewards
            return
        pairs = self._pairs(rows)
        for better, worse in pairs:
            if self.pack.form == "pairs":
                yield record([better, worse]) | {"chosen_id": better["image_id"], "rejected_id": worse["image_id"]}
            else:
                # Which stands first must not say which is better.
                shown = sorted((better, worse), key=lambda row: row["image_id"])
                if hash_bit(" ".join(row["image_id"] for row in shown)):
                    shown.reverse()
                ids = {f"image_{i}_uid": row["image_id"] for i, row in enumerate(shown)}
                yield record(shown) | ids | {"num_example_per_prompt": len(pairs)}

    def _pairs(self, rows: list[dict[str, Any]]) -> list[tuple[dict[str, Any], dict[str, Any]]]:
        """(better, worse) of the pairs that the settings ask for; equal phi are no pair."""
        if self.pack.same_generator:
            groups = {row["generator"]: [r for r in rows if r["generator"] == row["generator"]] for row in rows}
        else:
            groups = {"": rows}
        found = []
        for group in groups.values():
            extremes = self.pack.pairs == "best_worst" and len(group) > 1
            pairs = [(group[0], group[-1])] if extremes else combinations(group, 2)
            # phi is a sum of fractions: a gap of 2/15 must not be missed by its last bit.
            gap = max(self.pack.min_gap - 1e-12, 1e-12)
            found += [(better, worse) for better, worse in pairs if better["phi"] - worse["phi"] >= gap]
        return found


def _more_columns(form: str, rewards: Sequence[str]) -> Mapping[str, object]:
    """Which picture is which, beside the columns that training reads."""
    import datasets

    text, number = datasets.Value("string"), datasets.Value("float64")
    if form == "lists":
        lists = {f"score.{name}": datasets.Sequence(number) for name in rewards}
        return {"prompt_id": text, "image_ids": datasets.Sequence(text), **lists}
    if form == "pairs":
        return {"chosen_id": text, "rejected_id": text}
    return {"image_0_uid": text, "image_1_uid": text, "num_example_per_prompt": datasets.Value("int32")}


def _bytes(record: Mapping[str, object]) -> int:
    """The bytes of a record's pictures."""
    found = 0
    for value in record.values():
        for cell in value if isinstance(value, list) else [value]:
            data = cell.get("bytes") if isinstance(cell, dict) else cell
            found += len(data) if isinstance(data, bytes) else 0
    return found
