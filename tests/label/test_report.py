"""The figures of a labelling report against the same figures counted one by one."""

import math
from collections import Counter
from collections.abc import Mapping
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from diffpref.label.report import write_report
from tests.label.report_world import GENERATORS, REWARDS, Row, figures_of, groups_of, make_rows, write_run


def test_counts(reported: tuple[Path, list[Row], Mapping[str, Any]]) -> None:
    _, rows, figures = reported
    groups = groups_of(rows)
    failed = [row for row in rows if row["status"] not in ("ok", "near_duplicate")]
    assert figures["prompts"]["rows"] == 61 and figures["prompts"]["kept"] == 60
    assert figures["prompts"]["status"]["duplicate"]["prompts"] == 1
    assert figures["pictures"] == {
        "planned": len(rows),
        "ok": sum(row["status"] == "ok" for row in rows),
        "labelled": sum(map(len, groups)),
        "failed": len(failed),
        "failed_share": pytest.approx(len(failed) / len(rows)),
    }
    sizes = Counter(map(len, groups)) + Counter({0: 60 - len(groups)})
    assert figures["candidates"]["prompts_by_candidates"] == {str(k): n for k, n in sorted(sizes.items())}
    assert figures["candidates"]["without_labels"] == 60 - len(groups) > 0
    assert figures["candidates"]["mean"] == pytest.approx(sum(map(len, groups)) / len(groups))


def test_generators(reported: tuple[Path, list[Row], Mapping[str, Any]]) -> None:
    _, rows, figures = reported
    assert set(figures["generators"]) == set(GENERATORS)
    for name, found in figures["generators"].items():
        mine = [row for row in rows if row["generator"] == name]
        phi = [row["phi"] for row in mine if row["phi"] is not None]
        assert found["planned"] == len(mine) and found["labelled"] == len(phi)
        assert found["mean_phi"] == pytest.approx(sum(phi) / len(phi))
        assert found["win_share"] == pytest.approx(sum(r["rank"] == 1 for r in mine) / len(groups_of(rows)))
        assert found["status"] == dict(Counter(row["status"] for row in mine))
        assert found["retried"] == sum(row["attempt"] > 0 for row in mine)
        assert found["near_duplicates"] == sum(row["duplicate_of"] != "" for row in mine)
        for status, texts in found["messages"].items():
            assert set(texts) == {r["message"] for r in mine if r["status"] == status} - {""}
    marked = [row for row in rows if row["duplicate_of"]]
    same = sum(row["duplicate_of"].rsplit("-", 1)[0].split("-", 1)[1] == row["generator"] for row in marked)
    assert figures["near_duplicates"] == {
        "prompts": len({row["prompt_id"] for row in marked}),
        "same generator": same,
        "another generator": len(marked) - same,
    }
    assert 0 < same < len(marked)


def test_agreement_and_ties(reported: tuple[Path, list[Row], Mapping[str, Any]]) -> None:
    _, rows, figures = reported
    pairs = [pair for group in groups_of(rows) for pair in combinations(group, 2)]

    def signs(key: str) -> np.ndarray:
        return np.sign([np.float32(a[key]) - np.float32(b[key]) for a, b in pairs])

    signs_of = {"one": signs("score.one"), "two-b": signs("score.two-b"), "phi": signs("phi")}
    for a, b in combinations(signs_of, 2):
        one, two = signs_of[a], signs_of[b]
        tau = (one * two).sum() / math.sqrt(abs(one).sum() * abs(two).sum())
        assert figures["tau_b"][a][b] == figures["tau_b"][b][a] == pytest.approx(tau)
    assert figures["ties"]["pairs"] == len(pairs)
    assert figures["ties"]["tied_share"] == pytest.approx(float((signs_of["phi"] == 0).mean())) and (
        figures["ties"]["tied_share"] > 0
    )
    flat = sum(len({row["phi"] for row in group}) == 1 for group in groups_of(rows))
    assert figures["ties"]["prompts_without_order"] == flat


def test_scores(reported: tuple[Path, list[Row], Mapping[str, Any]]) -> None:
    _, rows, figures = reported
    ok = [row for row in rows if row["status"] == "ok"]
    tokens = [len(row["prompt"].split()) for row in ok]
    for name in REWARDS:
        found, scores = figures["rewards"][name], np.array([np.float32(row[f"score.{name}"]) for row in ok], float)
        assert (found["scored"], found["low"], found["high"]) == (len(ok), scores.min(), scores.max())
        assert found["mean"] == pytest.approx(scores.mean()) and found["std"] == pytest.approx(scores.std())
        assert found["correlation_with_tokens"] == pytest.approx(np.corrcoef(scores, tokens)[0, 1])
        gains = [
            group[0][f"score.{name}"] - np.mean([row[f"score.{name}"] for row in group])
            for group in (sorted(group, key=lambda row: row["rank"]) for group in groups_of(rows))
        ]
        assert found["gain_of_the_best"] == pytest.approx(np.mean(gains), abs=1e-6)
        for generator, part in found["by_generator"].items():
            mine = scores[[row["generator"] == generator for row in ok]]
            assert part["mean"] == pytest.approx(mine.mean())
            assert part["histogram"] == np.histogram(np.clip(mine, *found["edges"][:: len(found["edges"]) - 1]),
                                                     found["edges"])[0].tolist()  # fmt: skip
            assert sum(part["histogram"]) == len(mine)


def test_sizes(reported: tuple[Path, list[Row], Mapping[str, Any]]) -> None:
    _, rows, figures = reported
    part = [row for row in rows if row["phi"] is not None]
    phi, area = [row["phi"] for row in part], [math.log(row["width"] * row["height"]) for row in part]
    sizes = figures["sizes"]
    assert sizes["correlation_of_phi_with_log_pixels"] == pytest.approx(np.corrcoef(phi, area)[0, 1])
    assert [(s["width"], s["height"]) for s in sizes["most_frequent"]] == [(24, 24), (32, 24)]
    for size in sizes["most_frequent"]:
        mine = [row["phi"] for row in part if row["width"] == size["width"]]
        assert size["pictures"] == len(mine) and size["mean_phi"] == pytest.approx(np.mean(mine))


def test_few_shards_or_many_give_the_same_report(
    reported: tuple[Path, list[Row], Mapping[str, Any]], tmp_path: Path
) -> None:
    folder, rows, figures = reported
    other = write_run(tmp_path / "labels-1", rows, size=7)
    write_report(other)

    def flat(value: object, at: str = "") -> dict[str, object]:
        items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else None
        if items is None:
            return {at: value}
        return {key: leaf for name, part in items for key, leaf in flat(part, f"{at}/{name}").items()}

    one, two = flat(dict(figures)), flat(dict(figures_of(other)))
    assert list(one) == list(two)
    for key, value in one.items():
        assert two[key] == (pytest.approx(value, abs=1e-9) if isinstance(value, float) else value), key
    first = (folder / "report.html").read_bytes()
    write_report(folder)
    assert (folder / "report.html").read_bytes() == first


def test_scores_far_from_zero_and_constant_ones(tmp_path: Path) -> None:
    rows = make_rows(40)
    for row in rows:
        row["score.one"], row["score.two-b"] = (None, None) if row["status"] != "ok" else (4e6 + row["score.one"], 0.1)
    figures = figures_of(write_report(write_run(tmp_path / "run", rows, images=False)).parent)
    scores = np.array([np.float32(row["score.one"]) for row in rows if row["status"] == "ok"], float)
    tokens = [len(row["prompt"].split()) for row in rows if row["status"] == "ok"]
    far, constant = figures["rewards"]["one"], figures["rewards"]["two-b"]
    assert far["std"] == pytest.approx(scores.std(), rel=1e-9)
    assert far["correlation_with_tokens"] == pytest.approx(np.corrcoef(scores, tokens)[0, 1], abs=1e-7)
    assert constant["correlation_with_tokens"] is None and constant["gain_of_the_best"] == 0
    assert sum(map(sum, (part["histogram"] for part in constant["by_generator"].values()))) == constant["scored"]
