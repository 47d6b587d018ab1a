"""The parquet files of a labelled data set as tables of DuckDB, which go to the disk where they outgrow the memory."""

import glob
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Float64
from numpy import ndarray

SCORE = "score."
"""What the column of a reward's scores begins with."""
LABELS = """
CREATE TABLE labels AS
SELECT image_id, prompt_id, generator, status, message, duplicate_of, width, height, rank, tokens,
    {phi} AS phi, phi IS NOT NULL AS labelled, attempt > 0 AS retried, rank = 1 AS best,
    ln(greatest(width::DOUBLE * height, 1)) AS log_pixels,
    regexp_extract(filename, '([0-9]+)[.]parquet$', 1)::BIGINT AS shard,
    shard * 4294967296 + file_row_number AS row,
    {scores}
FROM read_parquet({files}, filename = true, file_row_number = true)
LEFT JOIN (SELECT prompt_id, any_value(tokens)::DOUBLE AS tokens FROM prompts GROUP BY prompt_id) USING (prompt_id)
"""
SCORES = "CREATE VIEW scores AS UNPIVOT labels ON {columns} INTO NAME reward VALUE score"


@dataclass(frozen=True)
class Database:
    """The tables `prompts` (one row a prompt), `labels` (one row an image; what is not finite is null there) and
    `scores` (one row an image and reward that has a score)."""

    connection: duckdb.DuckDBPyConnection
    rewards: Sequence[str]
    """In the order of the columns."""

    def rows(self, query: str, *values: object) -> list[tuple[Any, ...]]:
        """What the query returns; `values` stand for its question marks."""
        return self.connection.execute(query, values).fetchall()

    def row(self, query: str) -> dict[str, Any]:
        """The first row by the names of its columns."""
        return self.table(query)[0]

    def table(self, query: str, *values: object) -> list[dict[str, Any]]:
        """Rows by the names of their columns."""
        result = self.connection.execute(query, values)
        names = [column[0] for column in result.description or ()]
        return [dict(zip(names, row, strict=True)) for row in result.fetchall()]


@contextmanager
def open_database(folder: Path) -> Iterator[Database]:
    """The tables of a run's folder with prompts.parquet and labels/.

    Raises:
        ValueError: one of the files is not there, or cannot be read; also from a query within the block.
    """
    _columns(folder / "prompts.parquet")
    files = sorted((folder / "labels").glob("[0-9]*.parquet"))
    if not files:
        raise ValueError(f"{folder / 'labels'} holds no labels: run the stage labels first.")
    columns = [_columns(path) for path in files][0]
    rewards = [name[len(SCORE) :] for name in columns if name.startswith(SCORE)]
    # One thread: sums of several would differ in their last digits from one report to the next.
    settings = {"threads": 1, "memory_limit": "2GB", "temp_directory": str(folder / ".duckdb")}
    connection = duckdb.connect(config=settings)
    try:
        connection.execute(f"CREATE VIEW prompts AS FROM read_parquet({_paths([folder / 'prompts.parquet'])})")
        scores = ", ".join(f"{_finite(name(SCORE + reward))} AS {name(reward)}" for reward in rewards)
        connection.execute(LABELS.format(phi=_finite("phi"), scores=scores, files=_paths(files)))
        connection.execute(SCORES.format(columns=", ".join(map(name, rewards))))
        yield Database(connection, rewards)
    except duckdb.Error as problem:
        raise ValueError(f"{folder} cannot be read ({problem}): restore it, or run its stage again.") from None
    finally:
        connection.close()


def _finite(column: str) -> str:
    return f"CASE WHEN isfinite({column}) THEN {column}::DOUBLE END"


def name(text: str) -> str:
    """The name of a column in a query."""
    return '"' + text.replace('"', '""') + '"'


def histogram(value: str, edges: Float64[ndarray, " edges"]) -> str:
    """An expression that counts a column in bins as NumPy does, [low, high) and the last one [low, high]; what lies
    beyond the edges is in the outermost bins. `counts` makes its answer a list."""
    # DuckDB's own bins are (low, high], so that the negative of each value is counted.
    ends = ", ".join(f"{-edge!r}::DOUBLE" for edge in edges[1:-1].tolist()[::-1])
    return f"histogram(-{value}, [{ends}]::DOUBLE[])"


def counts(answer: dict[float, int] | None, edges: Float64[ndarray, " edges"]) -> list[int]:
    """The counts of the bins from the lowest to the highest."""
    if answer is None:
        return [0] * (len(edges) - 1)
    found = [answer.get(-edge, 0) for edge in edges[1:-1].tolist()]
    return [answer.get(float("inf"), 0), *found]


def correlation(a: str, b: str) -> str:
    """An expression for Pearson's correlation in [-1, 1]; null where one of the columns is constant."""
    # What rounding alone leaves of a constant is no spread.
    spread = [f"stddev_pop({x}) > 1e-9 * (1 + abs(avg({x})))" for x in (a, b)]
    return f"CASE WHEN {' AND '.join(spread)} THEN corr({a}, {b}) END"


def _columns(path: Path) -> list[str]:
    try:
        return pq.read_schema(path).names
    except (OSError, pa.ArrowException) as problem:
        raise ValueError(f"{path} cannot be read ({problem}): restore it, or run its stage again.") from None


def _paths(files: Sequence[Path]) -> str:
    """A list of files in a query, each name as it is."""
    texts = [glob.escape(str(path)).replace("'", "''") for path in files]
    return "[" + ", ".join(f"'{text}'" for text in texts) + "]"
