"""The command `diffpref push RUN`: a finished run on the hub, with its card; `--dry-run` only says what would go up."""

import json
import re
import shlex
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro

from diffpref.files import atomic
from diffpref.run.done import finished
from diffpref.run.hub import Asker, open_page, push, uploaded

CARD = "README.md"
FOLDER = re.compile(r'^folder = ".*"(?=  #)', re.MULTILINE)
"""The line of the card's Python that names the folder."""
MEASURED: Mapping[str, str] = {
    "loss": "loss",
    "rewards/accuracies": "pairs that are ranked right",
    "rewards/margins": "margin, in nats",
    "heldout/accuracy": "held-out pairs that are ranked right",
    "drift": "error on the base model's own samples, against the base",
}
"""Metrics of the last line that has them, by what the card calls them."""


@dataclass(frozen=True)
class Push:
    """Put a finished run on the Hugging Face hub: weights, model card, samples, report, metrics and settings.

    Checkpoints with the optimizer's state, caches, logs, drift samples and rounds stay here. The token comes from
    `hf auth login` or HF_TOKEN."""

    run: tyro.conf.Positional[Path]
    """The output directory of a finished run."""
    repo_id: str = ""
    """The page's name, OWNER/NAME or NAME; by default that of the directory."""
    private: tyro.conf.FlagCreatePairsOff[bool] = False
    """A page that is made for it is private."""
    license: str = ""
    """The licence on the card, by the hub's name, as openrail++ or apache-2.0; by default the base model's, where that
    is on the hub."""
    dry_run: tyro.conf.FlagCreatePairsOff[bool] = False
    """List what would go up and what stays, with sizes; ask nobody and change nothing."""


def main(arguments: list[str]) -> int:
    """Push the run, or say what would be pushed; ValueErrors are the user's to mend."""
    options = tyro.cli(Push, args=arguments, prog="diffpref push")
    folder = options.run.expanduser()
    if not (folder / "config.yaml").is_file() or not (folder / CARD).is_file():
        raise ValueError(f"{folder} is no run: name an output directory, which has a config.yaml and a {CARD}.")
    finished(folder, [folder])
    name = options.repo_id or folder.resolve().name
    if options.dry_run:
        print("\n".join(listing(folder, name)))
        return 0
    again = f"Check --repo_id, the token's rights and the network, then: diffpref push {shlex.quote(str(folder))}"
    page = open_page(name, private=options.private, asker=Asker("diffpref push", again))
    complete_card(folder, page, options.license)
    print(f"on the hub: {push(folder, page)}")
    return 0


def listing(folder: Path, name: str) -> list[str]:
    """Lines on each file that would go up, and on what would stay, with sizes."""
    up = uploaded(folder)
    sizes = {path.relative_to(folder).as_posix(): path.stat().st_size for path in folder.rglob("*") if path.is_file()}
    left: Counter[str] = Counter()
    for file in sizes.keys() - set(up):
        top, *below = file.split("/")
        left[top + "/" * bool(below)] += sizes[file]
    lines = [f"would go to {name}: {len(up)} files, {_size(sum(sizes[file] for file in up))}"]
    lines += [f"  {_size(sizes[file]):>10}  {file}" for file in up]
    lines += [f"would stay here: {_size(sum(left.values()))}"]
    return lines + [f"  {_size(left[top]):>10}  {top}" for top in sorted(left)]


def complete_card(folder: Path, page: str, license: str) -> None:
    """Add to the card what is known now: its page's name in the example, the licence, and the last metrics."""
    from huggingface_hub import ModelCard

    card = ModelCard.load(folder / CARD)
    data: Any = card.data
    data.license = license or data.license or _licence_of(data.base_model)
    text = FOLDER.sub(lambda _: f'folder = "{page}"', card.text)
    if (table := measured(folder)) and "## Measured" not in text:
        text = text.replace("## Versions", f"## Measured at the end\n\n{table}\n\n## Versions", 1)
    atomic.write_text(folder / CARD, f"---\n{data.to_yaml()}\n---\n{text}")


def measured(folder: Path) -> str:
    """The last metrics as a table in Markdown; empty where there are none."""
    file = folder / "metrics.jsonl"
    found: dict[str, Any] = {}
    for line in file.read_text(encoding="utf-8").splitlines() if file.is_file() else []:
        found |= json.loads(line)
    rows = [f"| {text} | {found[name]:.4g} |" for name, text in MEASURED.items() if name in found]
    return "\n".join(["| | |", "|---|---|", *rows]) if rows else ""


def _licence_of(base: str | None) -> str | None:
    """The licence of a model on the hub; None where it has none, or cannot be asked."""
    from httpx2 import HTTPError
    from huggingface_hub import HfApi

    try:
        data: Any = HfApi().model_info(base).card_data if base else None
    except (OSError, HTTPError):
        return None
    return getattr(data, "license", None)


def _size(count: int) -> str:
    """Bytes for people.

    >>> _size(2_500_000)
    '2.5 MB'
    """
    for unit, many in (("GB", 10**9), ("MB", 10**6), ("KB", 10**3)):
        if count >= many:
            return f"{count / many:.1f} {unit}"
    return f"{count} B"
