"""Stage `packs`: labelled images as parquet files that training reads: lists, pairs, Pick-a-Pic columns."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch

from diffpref.files.identity import value_hash
from diffpref.label.entries import PackSettings
from diffpref.label.forms import Contest, Labelled
from diffpref.label.images import TarReader, images_markers
from diffpref.label.plan import Plan
from diffpref.label.shards import Shard, durable, inputs_of
from diffpref.label.stages import Made, Report, Work, shard_of

_GROUP_BYTES = 64 * 2**20
"""About how many bytes of images a row group holds."""


@dataclass(frozen=True)
class Pack:
    """One data set for training."""

    plan: Plan
    pack: PackSettings
    rewards: Sequence[str]
    """The names of the rewards, held-out ones too."""
    keep: bool = False

    @property
    def name(self) -> str:
        return f"packs/{self.pack.name}"

    def images(self, shard: int) -> int:
        return self.plan.count(shard)

    @property
    def settings(self) -> str:
        return value_hash([self.pack.identity(), self.plan.candidates])

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
        for generator in self.plan.generators:
            source = Shard(self.plan.root, f"images/{generator.name}", number)
            source.verify()
            readers[generator.name] = TarReader(source.path(".tar"))
        table = pq.read_table(labels.path(".parquet"))
        ranked: dict[str, list[dict[str, Any]]] = {prompt_id: [] for prompt_id, _ in self.plan.rows(number)}
        for row in table.to_pylist():
            if row["phi"] is not None:
                ranked[row["prompt_id"]].append(row)
        form, contest = self.pack.form, Contest(candidates=self.plan.candidates, rewards=self.rewards)

        def read(row: Labelled) -> bytes:
            return readers[row["generator"]].data(row["image_id"])

        columns = form.schema(contest)
        written = dropped = 0
        with durable(shard.path(".parquet")) as path, pq.ParquetWriter(path, columns, compression="none") as writer:
            batch: list[dict[str, object]] = []
            size = 0
            for rows in ranked.values():
                rows.sort(key=lambda row: row["rank"])
                records = list(form.records(rows, read, contest))
                dropped += not records
                written += len(records)
                batch += records
                size += sum(_bytes(record) for record in records)
                if size > _GROUP_BYTES:
                    writer.write_table(pa.Table.from_pylist(batch, schema=columns))
                    batch, size = [], 0
                report(self.plan.candidates)
            if batch:
                writer.write_table(pa.Table.from_pylist(batch, schema=columns))
        for reader in readers.values():
            reader.close()
        return Made((".parquet",), {"rows": written, "prompts without a row": dropped})


def _bytes(record: Mapping[str, object]) -> int:
    """The bytes of a record's images."""
    size = 0
    for value in record.values():
        for cell in value if isinstance(value, list) else [value]:
            data = cell.get("bytes") if isinstance(cell, dict) else cell
            size += len(data) if isinstance(data, bytes) else 0
    return size
