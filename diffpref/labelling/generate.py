"""Stage `images`: one generator draws its pictures of a shard's prompts."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa
import torch

from diffpref.files.identity import value_hash
from diffpref.labelling.config import GeneratorSettings
from diffpref.labelling.generators import Drawn, Generator, load_generator
from diffpref.labelling.images import TarWriter
from diffpref.labelling.plan import Plan, Planned, seed_of
from diffpref.labelling.provenance import versions
from diffpref.labelling.shards import durable, write_table
from diffpref.labelling.stages import Failures, Made, Report, Work, count, one_line, shard_of

SCHEMA = pa.schema(
    [
        ("image_id", pa.string()),
        ("prompt_id", pa.string()),
        ("generator", pa.string()),
        ("sample", pa.int32()),
        ("seed", pa.int64()),
        ("attempt", pa.int32()),
        ("status", pa.string()),
        ("message", pa.string()),
        ("width", pa.int32()),
        ("height", pa.int32()),
    ]
)


@dataclass(frozen=True)
class Generate:
    """The pictures of one generator."""

    plan: Plan
    generator: GeneratorSettings
    keep: bool = True

    @property
    def name(self) -> str:
        return f"images/{self.generator.name}"

    def pictures(self, shard: int) -> int:
        return len(self.plan.rows(shard)) * self.generator.samples

    @property
    def settings(self) -> str:
        return self.plan.generator_keys[self.generator.name]

    def inputs(self, shard: int) -> str:
        return value_hash([list(row) for row in self.plan.rows(shard)])

    def open(self, device: torch.device) -> Work:
        drawing = _Drawing(self, load_generator(self.generator, device))
        return drawing.shard


class _Drawing:
    """One worker's generator at work."""

    def __init__(self, stage: Generate, generator: Generator) -> None:
        self.stage, self.generator = stage, generator
        self.settings, self.run = stage.generator, stage.plan.config.run

    def shard(self, number: int, report: Report) -> Made:
        """Draw a shard; its files appear when all of it is drawn."""
        shard = shard_of(self.stage, number)
        planned = self.stage.plan.pictures(number, self.settings)
        failures = Failures(shard.name, len(planned), self.run.max_failure_share)
        rows: list[dict[str, Any]] = []
        with durable(shard.path(".tar")) as path, TarWriter(path) as tar:
            for first in range(0, len(planned), self.settings.batch_size):
                batch = planned[first : first + self.settings.batch_size]
                for picture, (drawn, attempt) in zip(batch, self._batch(batch), strict=True):
                    rows.append(self._row(picture, drawn, attempt))
                    if drawn.image is None:
                        failures.add(picture.image_id, f"{drawn.status}: {drawn.message}")
                    else:
                        about = {"prompt": picture.prompt, **{k: rows[-1][k] for k in ("generator", "sample", "seed")}}
                        tar.add(picture.image_id, drawn.image, about)
                report(len(batch))
        write_table(shard.path(".parquet"), pa.Table.from_pylist(rows, schema=SCHEMA))
        return Made((".tar", ".parquet"), count(rows), versions())

    def _row(self, picture: Planned, drawn: Drawn, attempt: int) -> dict[str, Any]:
        width, height = drawn.image.size if drawn.image else (0, 0)
        return {
            "image_id": picture.image_id,
            "prompt_id": picture.prompt_id,
            "generator": self.settings.name,
            "sample": picture.sample,
            "seed": self._seed(picture, attempt),
            "attempt": attempt,
            "status": drawn.status,
            "message": drawn.message,
            "width": width,
            "height": height,
        }

    def _seed(self, picture: Planned, attempt: int) -> int:
        return seed_of(self.run.seed, picture.prompt_id, self.settings.name, picture.sample, attempt)

    def _batch(self, batch: Sequence[Planned]) -> list[tuple[Drawn, int]]:
        """Each picture with the number of its attempt; what fails is drawn alone, then from the seeds that follow."""
        try:
            drawn = self.generator([p.prompt for p in batch], [self._seed(p, 0) for p in batch])
        except Exception as problem:
            _raise_if_hopeless(problem)
            if len(batch) > 1 and _out_of_memory(problem):
                half = len(batch) // 2
                return [*self._batch(batch[:half]), *self._batch(batch[half:])]
            drawn = [Drawn(None, "gen_error", one_line(problem))] * len(batch)
        return [(d, 0) if d.image is not None else self._again(p, d) for p, d in zip(batch, drawn, strict=True)]

    def _again(self, picture: Planned, last: Drawn) -> tuple[Drawn, int]:
        attempts = [attempt for attempt in range(self.run.retries + 1) if attempt > 0 or last.status == "gen_error"]
        attempt = 0
        for attempt in attempts if self.run.retries else []:
            try:
                (last,) = self.generator([picture.prompt], [self._seed(picture, attempt)])
            except Exception as problem:
                _raise_if_hopeless(problem)
                last = Drawn(None, "gen_error", one_line(problem))
            if last.image is not None:
                return last, attempt
        return replace(last, message=last.message or last.status), attempt


def _out_of_memory(problem: Exception) -> bool:
    return isinstance(problem, torch.OutOfMemoryError | MemoryError)


def _raise_if_hopeless(problem: Exception) -> None:
    """A full disk, or a GPU that answers nothing more, would fail every picture that follows."""
    text = str(problem)
    if isinstance(problem, OSError) and problem.errno == 28 or "device-side assert" in text or "illegal memory" in text:
        raise problem
