"""Columns of labels as numbers, and moments that add up batch by batch. Axes: n pictures of a batch, d quantities."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from jaxtyping import Bool, Float64, Int64

SCORE = "score."
"""What the column of a reward's scores begins with."""


class Moments:
    """Mean, covariance and extremes of rows of d numbers, merged batch by batch (Chan, Golub and LeVeque 1979)."""

    def __init__(self, d: int = 1) -> None:
        self.n, self.mean, self.scatter = 0, np.zeros(d), np.zeros((d, d))
        self.low, self.high = np.full(d, math.inf), np.full(d, -math.inf)

    def add(self, rows: Float64[np.ndarray, "n d"]) -> None:
        if not len(rows):
            return
        n, mean = self.n + len(rows), rows.mean(0)
        apart, centred = mean - self.mean, rows - mean
        self.scatter += centred.T @ centred + np.outer(apart, apart) * (self.n * len(rows) / n)
        self.mean = self.mean + apart * (len(rows) / n)
        self.low, self.high = np.minimum(self.low, rows.min(0)), np.maximum(self.high, rows.max(0))
        self.n = n

    @property
    def std(self) -> Float64[np.ndarray, " d"]:
        """Of the rows themselves (divided by n)."""
        return np.sqrt(np.diag(self.scatter) / max(self.n, 1))

    def correlation(self, i: int, j: int) -> float | None:
        """Pearson's, in [-1, 1]; None where one of the two is constant."""
        # What rounding alone leaves of a constant is no spread.
        if not all(self.std[k] > 1e-9 * (1 + abs(self.mean[k])) for k in (i, j)):
            return None
        return float(self.scatter[i, j] / math.sqrt(self.scatter[i, i] * self.scatter[j, j]))


@dataclass(frozen=True)
class Batch:
    """The columns of some rows of the labels; a number that is null is not a number here."""

    prompt: Int64[np.ndarray, " n"]
    """Equal for pictures of one prompt; from 0."""
    generator: np.ndarray
    status: np.ndarray
    duplicate_of: np.ndarray
    retried: Bool[np.ndarray, " n"]
    phi: Float64[np.ndarray, " n"]
    best: Bool[np.ndarray, " n"]
    scores: Mapping[str, Float64[np.ndarray, " n"]]
    width: Int64[np.ndarray, " n"]
    height: Int64[np.ndarray, " n"]
    tokens: Float64[np.ndarray, " n"]
    """CLIP tokens of the picture's prompt."""

    @property
    def labelled(self) -> Bool[np.ndarray, " n"]:
        """Which pictures take part in the labels."""
        return np.isfinite(self.phi)

    @property
    def log_pixels(self) -> Float64[np.ndarray, " n"]:
        """The logarithm of the pictures' areas in pixels."""
        return np.log(np.maximum(self.width * self.height, 1).astype(np.float64))


def to_batch(table: pa.Table, tokens: Float64[np.ndarray, " n"]) -> Batch:
    """The columns of some rows of the labels; a prompt's rows stand in one table."""

    def numbers(name: str) -> np.ndarray:
        values = table.column(name).cast(pa.float64()).to_numpy()
        return np.where(np.isfinite(values), values, np.nan)

    def texts(name: str) -> np.ndarray:
        return np.array(table.column(name).to_pylist(), dtype=str)

    def whole(name: str) -> np.ndarray:
        return np.nan_to_num(numbers(name)).astype(np.int64)

    return Batch(
        np.unique(texts("prompt_id"), return_inverse=True)[1].astype(np.int64),
        texts("generator"),
        texts("status"),
        texts("duplicate_of"),
        whole("attempt") > 0,
        numbers("phi"),
        numbers("rank") == 1,
        {name[len(SCORE) :]: numbers(name) for name in table.column_names if name.startswith(SCORE)},
        whole("width"),
        whole("height"),
        tokens,
    )
