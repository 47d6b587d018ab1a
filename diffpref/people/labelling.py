"""The state behind the page: one person's answers, kept in the file at every moment, and when to stop asking."""

import math
import secrets
import shlex
import threading
import time
from pathlib import Path
from typing import Any

from diffpref.files.identity import hash_bit
from diffpref.people.pairs import SCORES, Pair, labels_path, read_answers, read_pairs, write_answers

TRAIN_AGAIN = "start the training again, it reads the labels in this folder"
"""What comes after the last answer where a training run asked for it."""
GRACE = 10.0  # seconds from the last answer to the end, to take that answer back


class Labelling:
    """One annotator's answers to the pairs of one folder, and when to stop asking; safe to call from any thread."""

    def __init__(self, folder: Path, annotator: str, then: str = TRAIN_AGAIN) -> None:
        self.folder, self.annotator, self.then = folder, annotator, then
        self.pairs = read_pairs(folder)
        self.path = labels_path(folder, annotator)
        self.answers = read_answers(self.path, self.pairs)
        # A tab of an earlier start must not answer for images it never showed.
        self.token = secrets.token_hex(8)
        self.images = {
            f"/image/{self.token}/{i}/{name}": folder / image
            for i, pair in enumerate(self.pairs)
            for name, image in zip(("first", "second"), pair.images, strict=True)
        }
        self.stop_at = math.inf  # on the monotonic clock
        self.lock = threading.Lock()

    def left(self) -> int:
        """How many pairs have no answer."""
        return len(self.pairs) - len(self.answers)

    def state(self) -> dict[str, Any]:
        """What the page needs."""
        pairs = []
        for i, pair in enumerate(self.pairs):
            shown = display_order(pair)
            sources = [f"/image/{self.token}/{i}/{name}" for name in shown]
            answer = self.answers.get(pair.id)
            pairs.append({"id": pair.id, "prompt": pair.prompt, "shown": shown, "sources": sources, "answer": answer})
        return {
            "token": self.token,
            "annotator": self.annotator,
            "file": self.path.name,
            "grace": GRACE,
            "pairs": pairs,
        }

    def answer(self, pair: object, answer: object) -> None:
        """Writes one answer to the file; after the last one the end comes in GRACE seconds."""
        if pair not in [known.id for known in self.pairs]:
            raise ValueError(f"the pair must be in pairs.json, got {pair!r}; reload the page.")
        if answer not in SCORES:
            raise ValueError(f"the answer must be one of {list(SCORES)}, got {answer!r}; reload the page.")
        with self.lock:
            # Read again: the same annotator may have a second window open, or have edited the file.
            answers = read_answers(self.path, self.pairs) | {str(pair): str(answer)}
            write_answers(self.path, answers, annotator=self.annotator)
            self.answers = answers
            self.stop_at = math.inf if self.left() else time.monotonic() + GRACE

    def hold(self) -> None:
        """The person looks at an answer again: having them all is no reason to stop, until the next answer."""
        with self.lock:
            self.stop_at = math.inf

    def finish(self) -> None:
        with self.lock:
            self.stop_at = -math.inf

    def over(self) -> bool:
        return time.monotonic() >= self.stop_at

    def summary(self) -> str:
        """What is done, and what to do next."""
        total = len(self.pairs)
        if not self.left():
            return f"All {total} pairs are answered, in {self.path}.\nNext: {self.then}."
        name = ["--annotator", self.annotator] if self.annotator else []
        command = shlex.join(["diffpref", "label-pairs", str(self.folder), *name])
        kept = f", in {self.path}" if self.answers else ""
        return f"{total - self.left()} of {total} pairs are answered{kept}.\nNext: label the other pairs with {command}"


def display_order(pair: Pair) -> list[str]:
    """Which image stands left and which right: the same at every start, either way equally often over many pairs."""
    swap = hash_bit(pair.id)
    return ["second", "first"] if swap else ["first", "second"]
