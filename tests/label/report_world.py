"""A labelled data set in the files that the engine leaves, with everything that can happen to an image."""

import json
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from diffpref.label.images import TarWriter
from diffpref.label.prompts import prompt_id

SCHEMA = pa.schema(
    [
        *((name, pa.string()) for name in ("image_id", "prompt_id", "generator")),
        *(("sample", pa.int32()), ("seed", pa.int64()), ("attempt", pa.int32())),
        *((name, pa.string()) for name in ("status", "message")),
        *(("width", pa.int32()), ("height", pa.int32()), ("prompt", pa.string()), ("duplicate_of", pa.string())),
        *(("phi", pa.float64()), ("rank", pa.int32()), ("score.one", pa.float32()), ("score.two-b", pa.float32())),
    ]
)
GENERATORS = {"sd-xl": 2, "pix": 1}
REWARDS = ("one", "two-b")
Row = dict[str, Any]


def make_rows(prompts: int = 60, seed: int = 0) -> list[Row]:
    """Every status, prompts without labels, ties, a flagged near-duplicate, two sizes and a score that is missing."""
    rng, rows = random.Random(seed), []
    for i in range(prompts):
        prompt = f"prompt {i} & <b>" + " word" * rng.randint(1, 30)
        group = []
        for generator, samples in GENERATORS.items():
            for sample in range(samples):
                name = prompt_id(prompt)
                row: Row = {"image_id": f"{name}-{generator}-{sample}", "prompt_id": name, "prompt": prompt}
                row |= {"generator": generator, "sample": sample, "seed": i, "attempt": int(rng.random() < 0.1)}
                row |= {"status": "ok", "message": "", "duplicate_of": "", "phi": None, "rank": None}
                row["width"], row["height"] = (32, 24) if generator == "pix" else (24, 24)
                row["score.one"], row["score.two-b"] = round(rng.gauss(20, 1), 1), rng.gauss(1, 2)
                row["score.one"] += 0.5 * (generator == "pix")
                chance = rng.random()
                if chance < 0.2:
                    row["status"], row["message"] = rng.choice(
                        [("gen_error", "RuntimeError: <out> of memory"), ("score_nan", "one: nan"), ("black_image", "")]
                    )
                    row["score.one"] = row["score.two-b"] = None
                elif chance > 0.9 and group:
                    row["duplicate_of"] = group[-1]["image_id"]
                    row["status"] = rng.choice(["ok", "near_duplicate"])
                group.append(row)
        part = [row for row in group if row["status"] == "ok"]
        if len(part) > 1:
            part.sort(key=lambda row: -row["score.one"])
            for place, row in enumerate(part):
                row["phi"] = sum(row["score.one"] > other["score.one"] for other in part) / (len(part) - 1)
                row["rank"] = place + 1
        rows += group
    return rows


def colour(row: Row) -> tuple[int, int, int]:
    """Of its image: red says the rank, blue the prompt."""
    return (row["rank"] or 0) * 60, 0, int(row["prompt_id"][:2], 16)


def write_run(folder: Path, rows: list[Row], *, size: int = 25, images: bool = True) -> Path:
    """The files that the engine leaves, shards of `size` prompts."""
    prompts = list(dict.fromkeys((row["prompt_id"], row["prompt"]) for row in rows))
    table: list[Row] = [
        {"prompt_id": name, "prompt": text, "status": "ok", "kept": True, "tokens": len(text.split()), "detail": ""}
        for name, text in prompts
    ]
    gone = {"prompt_id": "0" * 16, "prompt": "<i>gone</i>", "status": "duplicate", "kept": False, "tokens": 900}
    table = [{**row, "row": i} for i, row in enumerate([{**gone, "detail": "row 3: first & only"}, *table])]
    (folder / "labels").mkdir(parents=True)
    pq.write_table(pa.Table.from_pylist(table), folder / "prompts.parquet")
    for start in range(0, len(prompts), size):
        names = {name for name, _ in prompts[start : start + size]}
        here = [row for row in rows if row["prompt_id"] in names]
        shard = f"{start // size:05d}"
        pq.write_table(pa.Table.from_pylist(here, schema=SCHEMA), folder / "labels" / f"{shard}.parquet")
        for generator in GENERATORS if images else ():
            (folder / "images" / generator).mkdir(parents=True, exist_ok=True)
            with TarWriter(folder / "images" / generator / f"{shard}.tar") as tar:
                for row in here:
                    if row["generator"] == generator:
                        tar.add(row["image_id"], Image.new("RGB", (row["width"], row["height"]), colour(row)), {})
    return folder


def figures_of(folder: Path) -> Mapping[str, Any]:
    def strict(name: str) -> None:
        raise AssertionError(f"{name} is no JSON")

    return json.loads((folder / "report.json").read_text(encoding="utf-8"), parse_constant=strict)


def groups_of(rows: list[Row]) -> list[list[Row]]:
    groups: dict[str, list[Row]] = {}
    for row in rows:
        if row["phi"] is not None:
            groups.setdefault(row["prompt_id"], []).append(row)
    return list(groups.values())
