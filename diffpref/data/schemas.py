"""The public schemas of preference data: which columns each has, and what a row of it means."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeAlias

from diffpref.data.bad_row import BadRow
from diffpref.files.identity import hash_bit

Cells: TypeAlias = Mapping[str, object]
"""One row: the schema's column names and what the cells hold. Absent optional columns are absent."""


@dataclass(frozen=True)
class Choice:
    """A row understood: `cells` are its images as the source holds them; higher scores are better, and may all be
    equal (a tie)."""

    prompt: str
    cells: tuple[object, ...]
    scores: tuple[float, ...]
    models: tuple[str, ...] = ()


def _prompt(row: Cells, column: str = "prompt") -> str:
    prompt = row[column]
    if prompt is None or (isinstance(prompt, str) and not prompt.strip()):
        raise BadRow("empty caption", f"{column} is empty: write a caption for it.")
    if not isinstance(prompt, str):
        raise BadRow("caption is no text", f"{column} must be text, got {type(prompt).__name__} {prompt!r:.80}.")
    return prompt.strip()


def _number(value: object, column: str) -> float:
    if value is None:
        raise BadRow("missing score", f"{column} is missing: fill it in.")
    try:
        number = float(value) if isinstance(value, (int, float, str)) else None
    except ValueError:
        number = None
    if number is None:
        raise BadRow("score is no number", f"{column} must be a number, got {value!r:.80}.")
    if not math.isfinite(number):
        raise BadRow("score not finite", f"{column} must be a finite number, got {value}: score the image again.")
    return number


def _list(row: Cells, column: str) -> list[object]:
    value = row[column]
    if not isinstance(value, (list, tuple)):
        raise BadRow("not a list", f"{column} must be a list, got {type(value).__name__}.")
    return list(value)


def _models(row: Cells, *columns: str) -> tuple[str, ...]:
    names = [row.get(column) for column in columns]
    return tuple(str(name) for name in names) if all(name is not None for name in names) else ()


def _group(row: Cells, images: str, scores: str, *, sign: int = 1) -> Choice | str:
    cells, numbers = _list(row, images), _list(row, scores)
    if len(cells) != len(numbers):
        raise BadRow(
            "lengths differ", f"{images} has {len(cells)} entries and {scores} {len(numbers)}: give one to each."
        )
    if len(cells) < 2:
        raise BadRow("single image", f"{images} has {len(cells)} entries: a comparison needs at least two.")
    values = tuple(sign * _number(number, f"{scores}[{i}]") for i, number in enumerate(numbers))
    models = row.get("models")
    if models is not None and (not isinstance(models, (list, tuple)) or len(models) not in (0, len(cells))):
        raise BadRow("lengths differ", f"models must name the model of each of the {len(cells)} images, or be absent.")
    named = tuple(map(str, models)) if isinstance(models, (list, tuple)) else ()
    return Choice(_prompt(row), tuple(cells), values, named)


def canonical_pair(row: Cells) -> Choice | str:
    """`chosen` is better than `rejected`; their scores, where given, must say the same."""
    models = _models(row, "chosen_model", "rejected_model")
    cells = (row["chosen"], row["rejected"])
    if row.get("chosen_score") is None and row.get("rejected_score") is None:
        return Choice(_prompt(row), cells, (1.0, 0.0), models)
    chosen = _number(row.get("chosen_score"), "chosen_score")
    rejected = _number(row.get("rejected_score"), "rejected_score")
    if chosen < rejected:
        raise BadRow(
            "scores contradict the choice",
            f"chosen_score {chosen:g} is below rejected_score {rejected:g}: swap the images, or remove both columns.",
        )
    return Choice(_prompt(row), cells, (chosen, rejected), models)


def scored_list(row: Cells) -> Choice | str:
    """`scores`: higher is better."""
    return _group(row, "images", "scores")


def ranked_list(row: Cells) -> Choice | str:
    """`ranks`: 1 is the best."""
    return _group(row, "images", "ranks", sign=-1)


def pick_a_pic(row: Cells) -> Choice | str:
    """Labels are 1 and 0, or 0.5 twice for a tie; a missing label_1 is 1 - label_0."""
    if row.get("has_label") is False:
        return "no label"
    if row.get("are_different") is False:
        return "same image"
    first = _number(row["label_0"], "label_0")
    second = _number(row["label_1"], "label_1") if "label_1" in row else 1.0 - first
    prompt = _prompt(row, "caption")
    return Choice(prompt, (row["jpg_0"], row["jpg_1"]), (first, second), _models(row, "model_0", "model_1"))


def hpdv2_train(row: Cells) -> Choice | str:
    """`human_preference` is 1 at the preferred image."""
    return _group(row, "file_path", "human_preference")


def hpdv2_test(row: Cells) -> Choice | str:
    """`rank` averages the annotators' ranks, 1 is the best."""
    return _group(row, "image_path", "rank", sign=-1)


def hpdv3(row: Cells) -> Choice | str:
    """path1 is always the preferred image, so a bit of the row's hash decides which side it is shown on.

    `confidence` is the probability that path1 is the better one; without it the scores are 1 and 0."""
    prompt = _prompt(row)
    confidence = _number(row["confidence"], "confidence") if row.get("confidence") is not None else 1.0
    if not 0 <= confidence <= 1:
        raise BadRow("confidence outside [0, 1]", f"confidence must be in [0, 1], got {confidence:g}.")
    if confidence <= 0.5:
        return "confidence at most 0.5"
    names = ("path1", "path2", "model1", "model2")
    content = "\0".join([prompt, *(value for value in map(row.get, names) if isinstance(value, str))])
    swap = hash_bit(content)
    order = slice(None, None, -1 if swap else 1)
    scores = (confidence, 1.0 - confidence)
    return Choice(prompt, (row["path1"], row["path2"])[order], scores[order], _models(row, "model1", "model2")[order])


def votes(row: Cells) -> Choice | str:
    """Scores are shares of the votes, in [0, 1]."""
    first, second = _number(row["votes_image1"], "votes_image1"), _number(row["votes_image2"], "votes_image2")
    if min(first, second) < 0:
        raise BadRow("negative votes", f"votes must be 0 or above, got {first:g} and {second:g}.")
    prompt, total = _prompt(row), first + second
    if total == 0:
        return "no votes"
    return Choice(
        prompt, (row["image1"], row["image2"]), (first / total, second / total), _models(row, "model1", "model2")
    )


@dataclass(frozen=True)
class Schema:
    """A layout of columns; in `needs`, "a|b" is column a, also found under the name b."""

    name: str
    needs: tuple[str, ...]
    optional: tuple[str, ...]
    convert: Callable[[Cells], Choice | str]
    """What a row means, or why it is left out ("no label"); raises BadRow where it means nothing."""
    marks: tuple[str, ...] = ()
    """Columns of which one must be there too, where the needed names alone do not say which image is better."""

    @property
    def columns(self) -> set[str]:
        return {name for need in self.needs for name in need.split("|")} | set(self.optional)


SCHEMAS = (
    Schema(
        "pairs (chosen, rejected)",
        ("prompt", "chosen", "rejected"),
        ("chosen_score", "rejected_score", "chosen_model", "rejected_model"),
        canonical_pair,
    ),
    Schema("scored lists", ("prompt", "images", "scores"), ("models",), scored_list),
    Schema("ranked lists", ("prompt", "images", "ranks"), ("models",), ranked_list),
    Schema(
        "Pick-a-Pic",
        ("caption|original_prompt|prompt", "jpg_0", "jpg_1", "label_0"),
        ("label_1", "has_label", "are_different", "model_0", "model_1"),
        pick_a_pic,
    ),
    Schema("HPDv2 train", ("prompt", "file_path|image_path", "human_preference"), (), hpdv2_train),
    Schema("HPDv2 test", ("prompt", "image_path|file_path", "rank"), (), hpdv2_test),
    Schema(
        "HPDv3",
        ("prompt", "path1", "path2"),
        ("model1", "model2", "confidence"),
        hpdv3,
        marks=("model1", "confidence", "choice_dist"),
    ),
    Schema(
        "Rapidata votes",
        ("prompt", "image1", "image2", "votes_image1", "votes_image2"),
        ("model1", "model2"),
        votes,
    ),
)
