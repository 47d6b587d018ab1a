"""report.html and report.json of a labelling run: how many, how good, how the rewards agree, and what is suspicious."""

from pathlib import Path
from typing import Any

from diffpref.files import atomic
from diffpref.labelling import statistics, tally
from diffpref.labelling.database import Database, open_database
from diffpref.labelling.sections import AFTER_IT, BEFORE_THE_SHEET, STATUSES, verdict
from diffpref.labelling.sheet import draw_sheet
from diffpref.report.page import Page


def write_report(folder: Path) -> Path:
    """The path of report.html; report.json beside it holds the same figures.

    Args:
        folder: of a run, with prompts.parquet and labels/; images/ gives the contact sheet, and label.yaml says which
            rewards are held out.

    Raises:
        ValueError: prompts or labels are not there, or cannot be read.
    """
    page = Page(folder.resolve().name, "diffpref labels")
    with open_database(folder) as database:
        figures = {**count(database), "held_out": _held_out(folder / "label.yaml")}
        verdict(page, figures)
        for draw in BEFORE_THE_SHEET:
            draw(page, figures)
        draw_sheet(page, database, folder / "images")
    for draw in AFTER_IT:
        draw(page, figures)
    atomic.write_json(folder / "report.json", figures)
    page.write(folder / "report.html")
    return folder / "report.html"


def count(database: Database) -> dict[str, Any]:
    """All figures as plain numbers, texts, lists and dicts; None where there is nothing to count."""
    pairs, generators = statistics.count_pairs(database), tally.of_generators(database)
    candidates, ties = tally.of_candidates(database, pairs[statistics.PHI, statistics.PHI].ordered_a)
    return {
        "prompts": tally.of_prompts(database, list(STATUSES)),
        "pictures": tally.of_images(generators),
        "candidates": candidates,
        "generators": generators,
        "ties": ties,
        "rewards": statistics.of_rewards(database),
        "tau_b": statistics.tau_b(pairs),
        "near_duplicates": tally.of_duplicates(database),
        "sizes": tally.of_sizes(database),
    }


def _held_out(path: Path) -> list[str]:
    """The names of the rewards that have no say in the labels."""
    if not path.is_file():
        return []
    from diffpref.labelling.settings import from_yaml

    return [reward.name for reward in from_yaml(path).rewards if reward.held_out]
