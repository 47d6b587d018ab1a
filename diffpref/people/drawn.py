"""The images of a label run as pairs for people: copied out of its archives, prompt by prompt."""

import json
from itertools import combinations
from pathlib import Path

from diffpref.files import atomic
from diffpref.people.pairs import Pair

PLAN = "plan.json"


def is_label_run(folder: Path) -> bool:
    """Whether `diffpref label` wrote the folder."""
    return (folder / PLAN).is_file() and (folder / "prompts.parquet").is_file()


def pairs_of_run(run: Path, folder: Path, max_pairs: int) -> tuple[list[Pair], list[str]]:
    """Pairs of the images that were drawn, in whole prompts until there are `max_pairs`; the images are copied.

    Args:
        run: the run's output folder.
        folder: where the images go.

    Raises:
        ValueError: no image is drawn yet, or an archive that was changed.
    """
    from diffpref.label.images import Source

    plan = json.loads((run / PLAN).read_text(encoding="utf-8"))
    generators, size = list(plan["generators"]), int(plan["shard_size"])
    prompts = _prompts(run)
    pairs: list[Pair] = []
    for shard, start in enumerate(range(0, len(prompts), size)):
        if not all((run / "images" / name / f"{shard:05d}.tar").is_file() for name in generators):
            continue
        sources = [Source(run, shard, name) for name in generators]
        for prompt_id, prompt in prompts[start : start + size]:
            if len(pairs) >= max_pairs:
                break
            drawn = [(source, name) for source in sources for name, status in source.of(prompt_id) if status == "ok"]
            files = {name: _copy(source.reader.data(name), folder, prompt_id, name) for source, name in drawn}
            pairs += [
                Pair(f"{one}-{other}", prompt, (files[one], files[other])) for one, other in combinations(files, 2)
            ]
        for source in sources:
            source.reader.close()
    if not pairs:
        raise ValueError(f"{run} has no two drawn images of a prompt: run the stage images first.")
    return pairs, [f"images of the label run are in {folder}"]


def _prompts(run: Path) -> list[tuple[str, str]]:
    """(id, text) of the run's prompts, in the order of its shards."""
    import pyarrow.parquet as pq

    table = pq.read_table(run / "prompts.parquet", columns=["prompt_id", "prompt", "kept"])
    return [(row["prompt_id"], row["prompt"]) for row in table.to_pylist() if row["kept"]]


def _copy(data: bytes, folder: Path, prompt_id: str, name: str) -> str:
    """The image's path relative to the folder, where it is written."""
    path = folder / prompt_id / f"{name}.png"
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic.replacing(path) as temporary:
            temporary.write_bytes(data)
    return path.relative_to(folder).as_posix()
