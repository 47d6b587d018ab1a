"""A folder of images: pairs.json says what is compared, labels.json and labels.NAME.json what people answered."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from diffpref.files import atomic
from diffpref.files.identity import file_hash

PAIRS, PAIRS_FORMAT, LABELS_FORMAT = "pairs.json", "diffpref-pairs-1", "diffpref-labels-1"
SCORES: Mapping[str, float] = {"first": 1.0, "second": -1.0, "tie": 0.0}
TYPES: Mapping[str, str] = {
    ".png": "image/png",
    ".jpg": "image/jpeg",
    ".jpeg": "image/jpeg",
    ".webp": "image/webp",
}


@dataclass(frozen=True)
class Pair:
    """Two images of one prompt."""

    id: str
    prompt: str
    images: tuple[str, str]
    """The first and the second image, as paths relative to the folder, with forward slashes."""
    digests: tuple[str, str] | None = field(default=None, compare=False)
    """SHA-256 of both files when the pair was written; None where nobody noted them."""

    def changed(self, folder: Path) -> bool:
        """Whether an image is another one than when the pair was written, so that old answers are not about it."""
        return self.digests is not None and self.digests != _digests(folder, self.images)


def write_pairs(folder: Path, pairs: Sequence[Pair]) -> None:
    """Writes pairs.json; the images must be there already, and labels must not.

    Labels name pairs by id alone: old labels next to new pairs would be taken for answers to the new images."""
    if files := label_files(folder):
        raise ValueError(
            f"{files[0]} holds answers to the images that were here; pairs must be written to a folder without"
            " labels: choose a new folder, or delete the labels."
        )
    _write(folder, pairs)


def extend_pairs(folder: Path, pairs: Sequence[Pair]) -> None:
    """Writes pairs.json again with more pairs; labels may be there, so every old id keeps its images.

    Raises:
        ValueError: an old pair is missing, or has other images.
    """
    old = read_pairs(folder) if (folder / PAIRS).is_file() else []
    images = {pair.id: pair.images for pair in pairs}
    for pair in old:
        if images.get(pair.id) != pair.images:
            raise ValueError(f"{folder / PAIRS}: the pair {pair.id!r} must keep its images; choose another id.")
    _write(folder, pairs)


def _write(folder: Path, pairs: Sequence[Pair]) -> None:
    path = folder / PAIRS
    _check(path, pairs)
    entries = [
        {
            "id": pair.id,
            "prompt": pair.prompt,
            "pictures": list(pair.images),
            "sha256": list(_digests(folder, pair.images)),
        }
        for pair in pairs
    ]
    atomic.write_json(path, {"format": PAIRS_FORMAT, "pairs": entries})


def read_pairs(folder: Path) -> list[Pair]:
    """The pairs of pairs.json, in order."""
    path = folder / PAIRS
    if not path.is_file():
        raise ValueError(f"{path} does not exist: name a folder that has it, or make it with diffpref label-pairs.")
    entries = _read(path, PAIRS_FORMAT).get("pairs")
    if not isinstance(entries, list):
        raise ValueError(f"{path}: pairs must be a list, got {entries!r}; write it again with write_pairs.")
    pairs = []
    for i, entry in enumerate(entries):
        match entry:
            case {"id": str(name), "prompt": str(prompt), "pictures": [str(first), str(second)]}:
                noted = entry.get("sha256")
                digests = (str(noted[0]), str(noted[1])) if isinstance(noted, list) and len(noted) == 2 else None
                pairs.append(Pair(name, prompt, (first, second), digests))
            case _:
                raise ValueError(
                    f"{path}: pair {i} must have the texts id and prompt and two images, got {entry!r};"
                    " write it again with write_pairs."
                )
    _check(path, pairs)
    return pairs


def read_labels(folder: Path) -> dict[str, float]:
    """The mean answer to each pair that anyone answered, in [-1, 1]: 1 is first, -1 second, 0 a tie.

    The mean goes over the annotators who answered the pair; D3PO's human mode (arXiv:2311.13231) has one of them."""
    pairs = read_pairs(folder)
    scores: dict[str, list[float]] = {pair.id: [] for pair in pairs}
    for path in label_files(folder):
        for name, answer in read_answers(path, pairs).items():
            scores[name].append(SCORES[answer])
    return {name: sum(values) / len(values) for name, values in scores.items() if values}


def unanswered(folder: Path) -> list[str]:
    """The ids of the pairs that nobody answered, in order."""
    labels = read_labels(folder)
    return [pair.id for pair in read_pairs(folder) if pair.id not in labels]


def labels_path(folder: Path, annotator: str) -> Path:
    """Where one annotator's answers are; without a name, labels.json."""
    if not re.fullmatch(r"[\w-]*", annotator):
        raise ValueError(
            f"annotator must consist of letters, digits, - and _, as it becomes part of a file's name, got"
            f" {annotator!r}: choose another name."
        )
    return folder / (f"labels.{annotator}.json" if annotator else "labels.json")


def label_files(folder: Path) -> list[Path]:
    """All annotators' files."""
    return sorted([*folder.glob("labels.json"), *folder.glob("labels.*.json")])


def read_answers(path: Path, pairs: Sequence[Pair]) -> dict[str, str]:
    """One annotator's answers by pair id: "first", "second" or "tie"; none where there is no file."""
    if not path.is_file():
        return {}
    answers = _read(path, LABELS_FORMAT).get("labels")
    if not isinstance(answers, dict):
        raise ValueError(f"{path}: labels must map pair ids to answers, got {answers!r}; correct or delete it.")
    known = {pair.id for pair in pairs}
    for name, answer in answers.items():
        if name not in known:
            raise ValueError(
                f"{path}: the pair {name!r} is not in {PAIRS}, and every answer must belong to one: if the pairs were"
                " made again, delete the labels; else remove this entry."
            )
        if not isinstance(answer, str) or answer not in SCORES:
            raise ValueError(
                f"{path}: the answer to pair {name!r} must be one of {list(SCORES)}, got {answer!r};"
                " correct it, or remove this entry."
            )
    return answers


def write_answers(path: Path, answers: Mapping[str, str], *, annotator: str) -> None:
    """Replaces one annotator's file."""
    atomic.write_json(path, {"format": LABELS_FORMAT, "annotator": annotator, "labels": dict(answers)})


def _read(path: Path, format_name: str) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as problem:
        raise ValueError(f"{path} must be valid JSON: {problem}. Repair it, or delete it and begin again.") from None
    if not isinstance(value, dict) or value.get("format") != format_name:
        actual = value.get("format") if isinstance(value, dict) else value
        raise ValueError(f"{path}: format must be {format_name!r}, got {actual!r}; use the diffpref that wrote it.")
    return value


def _digests(folder: Path, images: tuple[str, str]) -> tuple[str, str]:
    return file_hash(folder / images[0]), file_hash(folder / images[1])


def _check(path: Path, pairs: Sequence[Pair]) -> None:
    """Raises where the pairs are none, share an id, or have an image that is not in the folder."""
    if not pairs:
        raise ValueError(f"{path} must have at least one pair, got none: draw images first.")
    inside, seen = path.parent.resolve(), set()
    for pair in pairs:
        if not pair.id or pair.id in seen:
            raise ValueError(f"{path}: ids must differ and not be empty, got {pair.id!r} again; number the pairs.")
        seen.add(pair.id)
        for image in pair.images:
            # Resolved, so that neither .. nor a link leads the page to another file of this machine.
            place = (inside / image).resolve()
            if not place.is_relative_to(inside):
                raise ValueError(
                    f"{path}: the image {image!r} of pair {pair.id!r} must lie in the folder; copy it there."
                )
            if Path(image).suffix.lower() not in TYPES:
                raise ValueError(
                    f"{path}: the image {image!r} of pair {pair.id!r} must end in one of {list(TYPES)}; save it as PNG."
                )
            if not place.is_file():
                raise ValueError(
                    f"{path}: the image {image!r} of pair {pair.id!r} does not exist; put it back, or draw the"
                    " images again."
                )
