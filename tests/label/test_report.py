"""The labelling report against figures counted one by one, and its pictures read back from the page."""

import base64
import io
import json
import math
import random
import re
from collections import Counter
from collections.abc import Mapping
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from diffpref.labelling.images import TarWriter
from diffpref.labelling.prompts import prompt_id
from diffpref.labelling.report import write_report
from diffpref.labelling.sections import percent

SCHEMA = pa.schema(
    [
        *((name, pa.string()) for name in ("image_id", "prompt_id", "generator")),
        *(("sample", pa.int32()), ("seed", pa.int64()), ("attempt", pa.int32())),
        *((name, pa.string()) for name in ("status", "message")),
        *(("width", pa.int32()), ("height", pa.int32()), ("prompt", pa.string()), ("duplicate_of", pa.string())),
        *(("phi", pa.float64()), ("rank", pa.int32()), ("score.one", pa.float32()), ("score.two-b", pa.float32())),
    ]
)
GENERATORS = {"sd-xl": 2, "pix": 1}
REWARDS = ("one", "two-b")
Row = dict[str, Any]


def make_rows(prompts: int = 60, seed: int = 0) -> list[Row]:
    """Every status, prompts without labels, ties, a flagged near-duplicate, two sizes and a score that is missing."""
    rng, rows = random.Random(seed), []
    for i in range(prompts):
        prompt = f"prompt {i} & <b>" + " word" * rng.randint(1, 30)
        group = []
        for generator, samples in GENERATORS.items():
            for sample in range(samples):
                name = prompt_id(prompt)
                row: Row = {"image_id": f"{name}-{generator}-{sample}", "prompt_id": name, "prompt": prompt}
                row |= {"generator": generator, "sample": sample, "seed": i, "attempt": int(rng.random() < 0.1)}
                row |= {"status": "ok", "message": "", "duplicate_of": "", "phi": None, "rank": None}
                row["width"], row["height"] = (32, 24) if generator == "pix" else (24, 24)
                row["score.one"], row["score.two-b"] = round(rng.gauss(20, 1), 1), rng.gauss(1, 2)
                row["score.one"] += 0.5 * (generator == "pix")
                chance = rng.random()
                if chance < 0.2:
                    row["status"], row["message"] = rng.choice(
                        [("gen_error", "RuntimeError: <out> of memory"), ("score_nan", "one: nan"), ("black_image", "")]
                    )
                    row["score.one"] = row["score.two-b"] = None
                elif chance > 0.9 and group:
                    row["duplicate_of"] = group[-1]["image_id"]
                    row["status"] = rng.choice(["ok", "near_duplicate"])
                group.append(row)
        part = [row for row in group if row["status"] == "ok"]
        if len(part) > 1:
            part.sort(key=lambda row: -row["score.one"])
            for place, row in enumerate(part):
                row["phi"] = sum(row["score.one"] > other["score.one"] for other in part) / (len(part) - 1)
                row["rank"] = place + 1
        rows += group
    return rows


def colour(row: Row) -> tuple[int, int, int]:
    """Of its picture: red says the rank, blue the prompt."""
    return (row["rank"] or 0) * 60, 0, int(row["prompt_id"][:2], 16)


def write_run(folder: Path, rows: list[Row], *, size: int = 25, pictures: bool = True) -> Path:
    """The files that the engine leaves, shards of `size` prompts."""
    prompts = list(dict.fromkeys((row["prompt_id"], row["prompt"]) for row in rows))
    table: list[Row] = [
        {"prompt_id": name, "prompt": text, "status": "ok", "kept": True, "tokens": len(text.split()), "detail": ""}
        for name, text in prompts
    ]
    gone = {"prompt_id": "0" * 16, "prompt": "<i>gone</i>", "status": "duplicate", "kept": False, "tokens": 900}
    table = [{**row, "row": i} for i, row in enumerate([{**gone, "detail": "row 3: first & only"}, *table])]
    (folder / "labels").mkdir(parents=True)
    pq.write_table(pa.Table.from_pylist(table), folder / "prompts.parquet")
    for start in range(0, len(prompts), size):
        names = {name for name, _ in prompts[start : start + size]}
        here = [row for row in rows if row["prompt_id"] in names]
        shard = f"{start // size:05d}"
        pq.write_table(pa.Table.from_pylist(here, schema=SCHEMA), folder / "labels" / f"{shard}.parquet")
        for generator in GENERATORS if pictures else ():
            (folder / "images" / generator).mkdir(parents=True, exist_ok=True)
            with TarWriter(folder / "images" / generator / f"{shard}.tar") as tar:
                for row in here:
                    if row["generator"] == generator:
                        tar.add(row["image_id"], Image.new("RGB", (row["width"], row["height"]), colour(row)), {})
    return folder


def figures_of(folder: Path) -> Mapping[str, Any]:
    def strict(name: str) -> None:
        raise AssertionError(f"{name} is no JSON")

    return json.loads((folder / "report.json").read_text(encoding="utf-8"), parse_constant=strict)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Row], Mapping[str, Any]]:
    rows = make_rows()
    folder = write_run(tmp_path_factory.mktemp("run") / "labels-1", rows)
    assert write_report(folder) == folder / "report.html"
    return folder, rows, figures_of(folder)


def groups_of(rows: list[Row]) -> list[list[Row]]:
    groups: dict[str, list[Row]] = {}
    for row in rows:
        if row["phi"] is not None:
            groups.setdefault(row["prompt_id"], []).append(row)
    return list(groups.values())


def test_counts(run: tuple[Path, list[Row], Mapping[str, Any]]) -> None:
    _, rows, figures = run
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


def test_generators(run: tuple[Path, list[Row], Mapping[str, Any]]) -> None:
    _, rows, figures = run
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


def test_agreement_and_ties(run: tuple[Path, list[Row], Mapping[str, Any]]) -> None:
    _, rows, figures = run
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


def test_scores(run: tuple[Path, list[Row], Mapping[str, Any]]) -> None:
    _, rows, figures = run
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


def test_sizes(run: tuple[Path, list[Row], Mapping[str, Any]]) -> None:
    _, rows, figures = run
    part = [row for row in rows if row["phi"] is not None]
    phi, area = [row["phi"] for row in part], [math.log(row["width"] * row["height"]) for row in part]
    sizes = figures["sizes"]
    assert sizes["correlation_of_phi_with_log_pixels"] == pytest.approx(np.corrcoef(phi, area)[0, 1])
    assert [(s["width"], s["height"]) for s in sizes["most_frequent"]] == [(24, 24), (32, 24)]
    for size in sizes["most_frequent"]:
        mine = [row["phi"] for row in part if row["width"] == size["width"]]
        assert size["pictures"] == len(mine) and size["mean_phi"] == pytest.approx(np.mean(mine))


def test_few_shards_or_many_give_the_same_report(
    run: tuple[Path, list[Row], Mapping[str, Any]], tmp_path: Path
) -> None:
    folder, rows, figures = run
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


def test_the_sheet_shows_each_prompts_pictures_best_first(run: tuple[Path, list[Row], Mapping[str, Any]]) -> None:
    folder, rows, _ = run
    html = (folder / "report.html").read_text(encoding="utf-8")
    assert "<script" not in html and "http" not in html and "<b>word" not in html and "<i>gone" not in html
    assert "&lt;out&gt; of memory" in html and "row 3: first &amp; only" in html
    found = [
        np.asarray(Image.open(io.BytesIO(base64.b64decode(data))).convert("RGB"))[0, 0].tolist()
        for data in re.findall(r'src="data:image/png;base64,([^"]+)"', html)
    ]
    lowest = sorted(groups_of(rows), key=lambda group: group[0]["prompt_id"])[:24]
    expected = [list(colour(row)) for group in lowest for row in sorted(group, key=lambda row: row["rank"])]
    assert found == expected


def test_warnings(tmp_path: Path) -> None:
    rows = [row for row in make_rows(20) if row["generator"] == "pix" or row["sample"] == 0]
    for a, b in zip(rows[::2], rows[1::2], strict=True):
        a.update(status="ok", phi=0.0, rank=2, duplicate_of="")
        b.update(status="ok", phi=1.0, rank=1, duplicate_of="")
        a["score.one"], b["score.one"], a["score.two-b"], b["score.two-b"] = 1.0, 2.0, 3.0, 3.0
    html = write_report(write_run(tmp_path / "one", rows, pictures=False)).read_text(encoding="utf-8")
    assert "pix drew the best picture of 100\xa0% of the prompts, with 50\xa0% of the pictures" in html
    assert "pictures could not be read from images/" in html
    assert figures_of(tmp_path / "one")["tau_b"]["one"]["two-b"] is None  # the second reward ties every pair
    for row in rows[:10]:
        row.update(status="gen_error", phi=None, rank=None)
    for row in rows[10:]:
        row.update(phi=0.5)
    html = write_report(write_run(tmp_path / "two", rows, pictures=False)).read_text(encoding="utf-8")
    assert "25\xa0% of the pictures failed" in html and "100\xa0% of the pairs are tied in phi" in html
    for row in rows:
        row.update(status="safety_blocked", phi=None, rank=None)
        row["score.one"] = row["score.two-b"] = None
    html = write_report(write_run(tmp_path / "three", rows, pictures=False)).read_text(encoding="utf-8")
    assert "No picture has a label" in html and "Contact sheet" not in html
    assert figures_of(tmp_path / "three")["rewards"]["one"]["mean"] is None


def test_a_reward_without_a_say_is_named(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", make_rows(5))
    text = "prompts: p.txt\ngenerators: [{name: pix, function: 'x:y', samples: 2}]\n"
    text += "rewards: [{name: one, reward: emoji_hand}, {name: two-b, reward: emoji_hand, held_out: true}]\n"
    (folder / "label.yaml").write_text(text)
    html = write_report(folder).read_text(encoding="utf-8")
    assert "two-b (held out)" in html and "one (held out)" not in html
    assert figures_of(folder)["held_out"] == ["two-b"]


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", make_rows(5), pictures=False)
    (folder / "labels" / "00000.parquet").write_bytes(b"torn")
    with pytest.raises(ValueError, match="00000.parquet cannot be read"):
        write_report(folder)
    (folder / "labels" / "00000.parquet").unlink()
    with pytest.raises(ValueError, match="holds no labels: run the stage labels first"):
        write_report(folder)
    (folder / "prompts.parquet").unlink()
    with pytest.raises(ValueError, match="prompts.parquet cannot be read"):
        write_report(folder)


def test_scores_far_from_zero_and_constant_ones(tmp_path: Path) -> None:
    rows = make_rows(40)
    for row in rows:
        row["score.one"], row["score.two-b"] = (None, None) if row["status"] != "ok" else (4e6 + row["score.one"], 0.1)
    figures = figures_of(write_report(write_run(tmp_path / "run", rows, pictures=False)).parent)
    scores = np.array([np.float32(row["score.one"]) for row in rows if row["status"] == "ok"], float)
    tokens = [len(row["prompt"].split()) for row in rows if row["status"] == "ok"]
    far, constant = figures["rewards"]["one"], figures["rewards"]["two-b"]
    assert far["std"] == pytest.approx(scores.std(), rel=1e-9)
    assert far["correlation_with_tokens"] == pytest.approx(np.corrcoef(scores, tokens)[0, 1], abs=1e-7)
    assert constant["correlation_with_tokens"] is None and constant["gain_of_the_best"] == 0
    assert sum(map(sum, (part["histogram"] for part in constant["by_generator"].values()))) == constant["scored"]


def test_a_folder_whose_name_is_a_pattern(tmp_path: Path) -> None:
    """Another folder that fits the pattern is not read."""
    write_run(tmp_path / "run 1", make_rows(9), pictures=False)
    folder = write_run(tmp_path / "run [1] it's", make_rows(5), pictures=False)
    write_report(folder)
    assert figures_of(folder)["pictures"]["planned"] == 15


def test_a_shard_that_is_damaged_inside(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", make_rows(30), pictures=False)
    path = folder / "labels" / "00000.parquet"
    data = bytearray(path.read_bytes())
    data[4:1500] = bytes(1496)
    path.write_bytes(data)
    with pytest.raises(ValueError, match="cannot be read .*restore it, or run its stage again"):
        write_report(folder)
    assert not (folder / "report.json").exists()


@pytest.mark.parametrize(
    ("share", "text"),
    [(None, "–"), (0.0, "0 %"), (0.00004, "< 0.1 %"), (0.1234, "12.3 %"), (0.99999, "> 99.9 %"), (1.0, "100 %")],
)
def test_percent(share: float | None, text: str) -> None:
    assert percent(share).replace("\xa0", " ").replace("\u202f", " ") == text
