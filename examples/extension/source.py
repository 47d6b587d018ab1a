"""A source of your own: a data set whose images are judged anew by a reward, whatever its labels say.

python -m diffpref.train --config configs/tiny-sdxl/dpo.yaml --source examples/extension/source.py:Rejudged \
    --judge emoji_hand

Read, cache and groups are those of a data set; only the scores are others.
"""

from dataclasses import dataclass, replace

from diffpref.data.check import check_rows
from diffpref.data.columns import parse_columns
from diffpref.data.decode import decode
from diffpref.data.forms import form_of
from diffpref.data.preferences import read_preferences
from diffpref.data.rows import Preferences, Row
from diffpref.data.scoring import score
from diffpref.rewards import find_reward
from diffpref.sources.dataset import Dataset
from diffpref.training.groups import Data
from diffpref.training.rounds import Basis
from diffpref.types import Objective


@dataclass(frozen=True)
class Rejudged(Dataset):
    """Learn from the images of a data set, and from a reward's opinion of them."""

    judge: str = "emoji_hand"
    """The reward that scores the images: a name, or module:function of (images, prompts)."""

    def check(self, basis: Basis) -> None:
        """Raise ValueError where no data set is named, or no reward has this name."""
        super().check(basis)
        find_reward(self.judge)

    def read(self, data: Data, objective: Objective) -> Preferences:
        """The checked rows with the reward's scores, in the form that the objective needs."""
        rows = read_preferences(
            data.dataset_name,
            split=data.dataset_split,
            columns=parse_columns(self.columns),
            on_bad_row=data.on_bad_row,
            max_rows=data.max_train_samples,
            ties="keep",
        )
        rows = form_of(objective).arrange(self._judged(rows), lists=self.lists)
        rows = check_rows(rows, size_mismatch=self.size_mismatch, on_bad_row=data.on_bad_row)
        return score(rows, objective, given=self.given_scores)

    def _judged(self, rows: Preferences) -> Preferences:
        reward, scores = find_reward(self.judge), dict[int, tuple[float, ...]]()
        for number, row in zip(rows.index, rows, strict=True):
            images = [decode(image) for image in row.images]
            scores[int(number)] = tuple(reward(images, [row.prompt] * len(images)).tolist())

        def read(number: int) -> Row:
            return replace(rows.read(number), scores=scores[number])

        log = (*rows.log, f"scores: by {self.judge}")
        return replace(rows, read=read, scores=[scores[int(number)] for number in rows.index], log=log)
