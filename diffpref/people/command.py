"""The command `diffpref label-pairs`: a person labels the pairs of a folder of images on a local page."""

import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro
from annotated_types import Ge

from diffpref.people.inputs import prepare
from diffpref.people.server import serve


@dataclass(frozen=True)
class LabelPairs:
    """Open a page on this machine that shows pairs of images and asks which is better."""

    folder: tyro.conf.Positional[Path]
    """A folder with a/ and b/, or with a folder of images for each prompt, or the output of `diffpref label`, or one
    that has pairs.json. The answers go to labels.json in it (of a label run: in its folder people/), which training
    and `diffpref data` read by the folder's name."""
    max_pairs: Annotated[int, Ge(1)] = 500
    """How many pairs are asked at most, spread evenly over the prompts."""
    port: int = 8765
    """The port of the page on 127.0.0.1; 0 takes any free one."""
    annotator: str = ""
    """Who answers, where several people do: the answers go to labels.NAME.json."""
    no_browser: tyro.conf.FlagCreatePairsOff[bool] = False
    """Print the address only."""


def main(arguments: list[str]) -> int:
    """Runs the page until every pair is answered, or the person finishes."""
    options = tyro.cli(LabelPairs, args=arguments, prog="diffpref label-pairs")
    folder, lines = prepare(options.folder, max_pairs=options.max_pairs)
    print("\n".join(lines), end="\n" if lines else "")
    place = shlex.quote(str(folder))
    then = f"diffpref data validate {place}, then train with --dataset_name {place}"
    serve(folder, port=options.port, annotator=options.annotator, open_browser=not options.no_browser, then=then)
    return 0
