"""What a labelled data set counts: prompts, images by generator, ties, near-duplicates and sizes."""

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np

from diffpref.labelling.database import Database, correlation, counts, histogram

MESSAGES, EXAMPLES, SIZES, BINS = 2, 2, 12, 40
NO_FAILURES = ("ok", "near_duplicate")
"""An image that resembles another one of its prompt is left out where the settings say so; it has not failed."""

STATUSES = f"""
SELECT status, count(*) AS prompts, count(*) FILTER (kept) AS kept,
    list({{prompt: prompt, detail: detail}} ORDER BY row)[:{EXAMPLES}] AS examples
FROM prompts GROUP BY status
"""
KEPT = "SELECT count(*) AS kept, avg(tokens) AS mean, max(tokens) AS longest FROM prompts WHERE kept"
GENERATORS = """
SELECT generator, count(*) AS planned, count(phi) AS labelled, count(*) FILTER (best) AS wins, avg(phi) AS mean_phi,
    count(*) FILTER (retried) AS retried, count(*) FILTER (duplicate_of <> '') AS near_duplicates
FROM labels GROUP BY generator ORDER BY generator
"""
STATUS = "SELECT generator, status, count(*) FROM labels GROUP BY ALL ORDER BY ALL"
WORDS = f"""
SELECT generator, status, message FROM (
    SELECT generator, status, message, min(row) AS row FROM labels WHERE status <> 'ok' GROUP BY ALL)
QUALIFY row_number() OVER (PARTITION BY generator, status, message = '' ORDER BY row) <= {MESSAGES}
ORDER BY min(row) OVER (PARTITION BY generator, status), row
"""
BY_PROMPT = """
SELECT candidates, count(*), count(*) FILTER (low = high)
FROM (SELECT count(phi) AS candidates, min(phi) AS low, max(phi) AS high FROM labels GROUP BY prompt_id)
GROUP BY candidates ORDER BY candidates
"""
# An image's id is its prompt's 16 digits, the generator and the sample, joined by "-".
DUPLICATES = """
SELECT count(DISTINCT prompt_id) AS prompts, count(*) FILTER (other = generator) AS "same generator",
    count(*) FILTER (other <> generator) AS "another generator"
FROM (SELECT *, regexp_replace(substr(duplicate_of, 18), '-[^-]*$', '') AS other FROM labels WHERE duplicate_of <> '')
"""
BY_SIZE = """
SELECT width, height, count(*) AS pictures, avg(phi) AS mean_phi FROM labels WHERE labelled
GROUP BY width, height ORDER BY pictures DESC, width, height
"""


def of_prompts(database: Database, statuses: Sequence[str]) -> dict[str, Any]:
    """How many prompts have which status, with examples, and how long the kept ones are."""
    rows = {row.pop("status"): row for row in database.table(STATUSES)}
    kept = database.row(KEPT)
    longest = int(kept["longest"] or 0)
    edges = np.linspace(0, max(longest, 1) + 1, min(max(longest, 1) + 1, BINS) + 1)
    ((bins,),) = database.rows(f"SELECT {histogram('tokens', edges)} FROM prompts WHERE kept")
    return {
        "rows": sum(row["prompts"] for row in rows.values()),
        "kept": kept["kept"],
        "status": {name: rows.get(name, {"prompts": 0, "kept": 0, "examples": []}) for name in statuses},
        "tokens": {
            "mean": kept["mean"],
            "longest": longest,
            "edges": edges.tolist(),
            "histogram": counts(bins, edges),
        },
    }


def of_images(generators: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """How many images there are, from the counts by generator."""
    planned = sum(g["planned"] for g in generators.values())
    failed = sum(n for g in generators.values() for status, n in g["status"].items() if status not in NO_FAILURES)
    return {
        "planned": planned,
        "ok": sum(g["status"].get("ok", 0) for g in generators.values()),
        "labelled": sum(g["labelled"] for g in generators.values()),
        "failed": failed,
        "failed_share": ratio(failed, planned),
    }


def of_generators(database: Database) -> dict[str, dict[str, Any]]:
    """What is counted of each generator's images."""
    rows = database.table(GENERATORS)
    labelled, wins = sum(row["labelled"] for row in rows), sum(row["wins"] for row in rows)
    status: defaultdict[str, dict[str, int]] = defaultdict(dict)
    for generator, name, n in database.rows(STATUS):
        status[generator][name] = n
    messages: defaultdict[str, dict[str, list[str]]] = defaultdict(dict)
    for generator, name, text in database.rows(WORDS):
        messages[generator].setdefault(name, []).extend([text] if text else [])
    return {
        row["generator"]: {
            "planned": row["planned"],
            "labelled": row["labelled"],
            "labelled_share": ratio(row["labelled"], labelled),
            "wins": row["wins"],
            "win_share": ratio(row["wins"], wins),
            "mean_phi": row["mean_phi"],
            "retried": row["retried"],
            "near_duplicates": row["near_duplicates"],
            "status": status[row["generator"]],
            "messages": messages[row["generator"]],
        }
        for row in rows
    }


def of_candidates(database: Database, ordered: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """How many labelled images the prompts have, and how many of their pairs are tied.

    Args:
        ordered: pairs of labelled images that phi does not tie.
    """
    rows = database.rows(BY_PROMPT)
    prompts, without = sum(n for _, n, _ in rows), sum(n for k, n, _ in rows if k == 0)
    pairs = sum(n * (k * (k - 1) // 2) for k, n, _ in rows)
    candidates = {
        "prompts": prompts,
        "without_labels": without,
        "mean": ratio(sum(k * n for k, n, _ in rows), prompts - without),
        "prompts_by_candidates": {str(k): n for k, n, _ in rows},
    }
    ties = {
        "pairs": pairs,
        "tied_share": ratio(pairs - ordered, pairs),
        "prompts_without_order": sum(flat for _, _, flat in rows),
    }
    return candidates, ties


def of_duplicates(database: Database) -> dict[str, int]:
    """How many images resemble an earlier one of their prompt, by whose it is."""
    return database.row(DUPLICATES)


def of_sizes(database: Database) -> dict[str, Any]:
    """The most frequent sizes of labelled images, and whether phi goes with the size."""
    rows = database.table(BY_SIZE)
    ((value,),) = database.rows(f"SELECT {correlation('phi', 'log_pixels')} FROM labels WHERE labelled")
    shown = sorted(rows[:SIZES], key=lambda row: (row["width"] * row["height"], row["width"], row["height"]))
    return {"different": len(rows), "correlation_of_phi_with_log_pixels": value, "most_frequent": shown}


def ratio(count: float, total: float) -> float | None:
    """The share, or None of nothing."""
    return count / total if total else None
