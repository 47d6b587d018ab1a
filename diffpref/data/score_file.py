"""Scores that are kept while a data set is scored, so that a killed run goes on: a line of JSON for each row."""

import json
import os
from collections.abc import Mapping
from pathlib import Path

from diffpref.data.bad_row import BadRow
from diffpref.data.decode import encoded_bytes
from diffpref.data.rows import Row
from diffpref.files import atomic
from diffpref.files.identity import content_key


def row_key(row: Row) -> str:
    """Names what a row's scores depend on beside the reward: its prompt and the bytes of its images.

    Raises:
        BadRow: an image's file cannot be read.
    """
    contents = []
    for source in row.images:
        try:
            contents.append(encoded_bytes(source))
        except OSError as problem:
            reason = f"{source} cannot be read ({problem.strerror}): restore the file."
            raise BadRow("missing image", reason) from None
    return content_key(row.prompt, *contents)


class ScoreFile:
    """The file beside the output; every `add` is on the disk when it returns.

    Args:
        output: what is written when all rows are scored.
        reward: its name, for people.
        identity: equal for equal scores of equal rows.

    Raises:
        ValueError: the file there has the scores of another reward.
    """

    def __init__(self, output: Path, *, reward: str, identity: str) -> None:
        self.path = output.with_name(f"{output.name}.scores.jsonl")
        lines = self.path.read_text(encoding="utf-8").splitlines() if self.path.is_file() else []
        whole = [entry for line in lines if (entry := _entry(line)) is not None]
        if whole and whole[0].get("identity") != identity:
            raise ValueError(
                f"{self.path} has scores of another reward ({whole[0].get('reward')}) or of another version of it: "
                "delete it, or choose another --output."
            )
        self.scores: dict[str, tuple[float, ...]] = {str(entry["key"]): tuple(entry["scores"]) for entry in whole[1:]}
        # Written again without a line that a kill has cut.
        first = {"reward": reward, "identity": identity}
        atomic.write_text(self.path, "".join(json.dumps(entry) + "\n" for entry in [first, *whole[1:]]))

    def __len__(self) -> int:
        return len(self.scores)

    def get(self, key: str) -> tuple[float, ...] | None:
        """The kept scores of a row."""
        return self.scores.get(key)

    def add(self, scores: Mapping[str, tuple[float, ...]]) -> None:
        """Keep the scores of some rows."""
        self.scores.update(scores)
        with self.path.open("a", encoding="utf-8") as file:
            for key, values in scores.items():
                file.write(json.dumps({"key": key, "scores": values}) + "\n")
            file.flush()
            os.fsync(file.fileno())

    def remove(self) -> None:
        """Delete the file: the output is written."""
        self.path.unlink(missing_ok=True)


def _entry(line: str) -> dict | None:
    """A whole line's content."""
    try:
        entry = json.loads(line)
    except ValueError:
        return None
    return entry if isinstance(entry, dict) else None
