"""The sections of a labelling report, each drawn from the figures that report.json holds."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from diffpref.labelling.sheet import shorten
from diffpref.report.page import Page

FAILURES, WINS, TIES = 0.05, 0.7, 0.5
"""Shares above which the report warns: failed pictures, best pictures by one generator, tied pairs."""
STATUSES = {
    "ok": "",
    "duplicate": "equals an earlier one but for case and spaces",
    "near_duplicate": "nearly equals an earlier one",
    "evaluation_set": "equals, or nearly, a prompt of an evaluation set",
    "too_long": "has more CLIP tokens than the text encoder reads",
}
"""What can become of a prompt, and what it means."""


def percent(share: float | None) -> str:
    """Like "12.3 %"; small shares never look like none, nor large ones like all."""
    if share is None:
        return "–"
    if 0 < share < 0.001:
        return "<\u202f0.1\u00a0%"
    return ">\u202f99.9\u00a0%" if 0.999 < share < 1 else f"{100 * share:.3g}\u00a0%"


def verdict(page: Page, figures: Mapping[str, Any]) -> None:
    prompts, pictures = figures["prompts"], figures["pictures"]
    candidates, ties = figures["candidates"], figures["ties"]
    failed = pictures["failed_share"] or 0.0
    page.figures(
        [
            (f"{prompts['kept']:,}", f"prompts kept of {prompts['rows']:,}", ""),
            (f"{pictures['labelled']:,}", f"labelled pictures of {pictures['planned']:,} planned", ""),
            ("–" if candidates["mean"] is None else f"{candidates['mean']:.3g}", "pictures a labelled prompt", ""),
            (percent(failed), "of pictures failed", "bad" if failed > FAILURES else ""),
            (percent(ties["tied_share"]), "of pairs tied in phi", "bad" if (ties["tied_share"] or 0) > TIES else ""),
        ]
    )
    warnings = list(_warnings(figures))
    for text in warnings:
        page.callout(text, "bad")
    if not warnings:
        page.callout("Nothing suspicious in failures, ties, and best pictures by generator.", "good")
    if pictures["labelled"] and candidates["without_labels"]:
        text = "Prompts without labels, for want of two pictures that can be compared"
        page.callout(f"{text}: {candidates['without_labels']:,}.", "note")


def _warnings(figures: Mapping[str, Any]) -> Iterator[str]:
    pictures, ties = figures["pictures"], figures["ties"]
    if not pictures["labelled"]:
        yield "No picture has a label: a prompt needs two that were drawn and scored."
    if (pictures["failed_share"] or 0) > FAILURES:
        yield f"{percent(pictures['failed_share'])} of the pictures failed; the table of failures says how."
    for name, generator in figures["generators"].items():
        share = generator["win_share"] or 0
        if len(figures["generators"]) > 1 and share > WINS:
            yield (
                f"{name} drew the best picture of {percent(share)} of the prompts, with "
                f"{percent(generator['labelled_share'])} of the pictures: such labels teach to draw like {name} more "
                "than to follow the prompt. Train on pairs by one generator (same_generator), or leave it out."
            )
    if (ties["tied_share"] or 0) > TIES:
        yield (
            f"{percent(ties['tied_share'])} of the pairs are tied in phi and teach nothing: the rewards disagree, or "
            "the pictures are alike. Another reward, or the aggregator win_prob or mean_z, gives fewer ties."
        )


def _name(figures: Mapping[str, Any], reward: str) -> str:
    return f"{reward} (held out)" if reward in figures["held_out"] else reward


def generators(page: Page, figures: Mapping[str, Any]) -> None:
    page.heading("Generators")
    rows = [
        [name, g["labelled"], percent(g["labelled_share"]), percent(g["win_share"]), g["mean_phi"]]
        for name, g in figures["generators"].items()
    ]
    page.table(["", "labelled pictures", "share of them", "share of best pictures", "mean phi"], rows)
    tied, compared = figures["ties"]["prompts_without_order"], figures["ties"]["pairs"]
    page.text(
        "Generators of equal quality would draw best pictures in their share of the pictures. Of "
        f"{compared:,} pairs of pictures of one prompt, {percent(figures['ties']['tied_share'])} are tied in phi; "
        f"{tied:,} prompts have the same phi everywhere."
    )
    counts = figures["candidates"]["prompts_by_candidates"]
    page.table(["labelled pictures of a prompt", "prompts"], [[int(k), n] for k, n in counts.items()])


def rewards(page: Page, figures: Mapping[str, Any]) -> None:
    every = figures["rewards"]
    page.heading("Rewards")
    names = ("scored", "mean", "std", "low", "high", "gain_of_the_best", "correlation_with_tokens")
    header = ["", "pictures", "mean", "deviation", "lowest", "highest", "gain of the best", "correlation with length"]
    page.table(header, [[_name(figures, r), *(found[key] for key in names)] for r, found in every.items()])
    page.text(
        "Gain of the best: the score of a prompt's best picture less the mean of its pictures, over all prompts. It "
        "should be above 0 for a held-out reward too. Correlation with length: Pearson's of score and CLIP tokens of "
        "the prompt."
    )
    generators = list(figures["generators"])
    if len(generators) > 1:
        means = [
            [_name(figures, name), *(reward["by_generator"].get(g, {}).get("mean") for g in generators)]
            for name, reward in every.items()
        ]
        page.table(["mean score", *generators], means)
    for name, reward in every.items():
        counts = {g: found["histogram"] for g, found in reward["by_generator"].items()}
        page.histogram(
            _name(figures, name), reward["edges"], counts, x_label="score", y_label="share of each generator's pictures"
        )


def agreement(page: Page, figures: Mapping[str, Any]) -> None:
    names = list(figures["tau_b"])
    page.heading("Agreement of the rewards")
    page.text(
        "Kendall's tau-b over all pairs of pictures of one prompt: 1 is the same order, 0 no relation, -1 the reverse. "
        "phi is the label."
    )
    page.heat([_name(figures, name) for name in names], [[figures["tau_b"][a].get(b) for b in names] for a in names])


def hygiene(page: Page, figures: Mapping[str, Any]) -> None:
    prompts = figures["prompts"]
    page.heading("Prompts")
    rows: list[Sequence[object]] = []
    for name, found in prompts["status"].items():
        if found["prompts"]:
            examples = "" if name == "ok" else "; ".join(map(_example, found["examples"]))
            share = percent(found["prompts"] / prompts["rows"])
            rows.append([name, STATUSES[name], found["prompts"], share, found["kept"], examples])
    page.table(["status", "", "prompts", "share", "kept", "examples"], rows)
    tokens = prompts["tokens"]
    title = "Length of kept prompts"
    page.histogram(title, tokens["edges"], {"prompts": tokens["histogram"]}, x_label="CLIP tokens, start and end too")


def _example(example: Mapping[str, str]) -> str:
    return f"“{shorten(example['prompt'])}”" + (f" ({shorten(example['detail'])})" if example["detail"] else "")


def failures(page: Page, figures: Mapping[str, Any]) -> None:
    generators = figures["generators"]
    statuses = sorted({s for g in generators.values() for s in g["status"]}, key=lambda s: (s != "ok", s))
    page.heading("Failures")
    header = ["", *generators]
    page.table(header, [[s, *(g["status"].get(s, 0) for g in generators.values())] for s in statuses])
    retried = sum(g["retried"] for g in generators.values())
    if retried:
        page.text(f"{retried:,} pictures were drawn more than once.")
    rows = [
        [status, name, shorten(text)]
        for name, g in generators.items()
        for status, texts in g["messages"].items()
        for text in texts
    ]
    if rows:
        page.table(["status", "generator", "message"], rows)


def near_duplicates(page: Page, figures: Mapping[str, Any]) -> None:
    found = figures["near_duplicates"]
    total = found["same generator"] + found["another generator"]
    page.heading("Near-duplicates")
    if not total:
        page.text("No picture resembles another one of its prompt.")
        return
    same, another = found["same generator"], found["another generator"]
    page.text(
        f"{total:,} pictures of {found['prompts']:,} prompts resemble an earlier one of their prompt; by the same "
        f"generator: {same:,}, by another: {another:,}."
    )
    rows = [
        [name, g["near_duplicates"], percent(g["near_duplicates"] / g["planned"])]
        for name, g in figures["generators"].items()
    ]
    page.table(["", "pictures", "share of planned"], rows)


def sizes(page: Page, figures: Mapping[str, Any]) -> None:
    sizes = figures["sizes"]
    if sizes["different"] < 2:
        return
    page.heading("Picture size")
    correlation = sizes["correlation_of_phi_with_log_pixels"]
    if correlation is not None:
        page.text(f"Correlation of phi with the logarithm of the area: {correlation:.2f}.")
    rows = [[f"{s['width']} x {s['height']}", s["pictures"], s["mean_phi"]] for s in sizes["most_frequent"]]
    page.table(["size", "labelled pictures", "mean phi"], rows)
    if sizes["different"] > len(rows):
        page.text(f"The {len(rows)} most frequent of {sizes['different']} sizes.")


BEFORE_THE_SHEET = (generators, rewards, agreement)
AFTER_IT = (hygiene, failures, near_duplicates, sizes)
