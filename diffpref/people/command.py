"""The command `diffpref label-pairs`: a person labels the pairs of a folder of images on a local page."""

from dataclasses import dataclass
from pathlib import Path

import tyro

from diffpref.people.server import serve


@dataclass(frozen=True)
class LabelPairs:
    """Open a page on this machine that shows pairs of images and asks which is better."""

    folder: tyro.conf.Positional[Path]
    """A folder of images with pairs.json; the answers go to labels.json in it."""
    port: int = 8765
    """The port of the page on 127.0.0.1; 0 takes any free one."""
    annotator: str = ""
    """Who answers, where several people do: the answers go to labels.NAME.json."""
    no_browser: tyro.conf.FlagCreatePairsOff[bool] = False
    """Print the address only."""


def main(arguments: list[str]) -> int:
    """Runs the page until every pair is answered, or the person finishes."""
    options = tyro.cli(LabelPairs, args=arguments, prog="diffpref label-pairs")
    serve(options.folder, port=options.port, annotator=options.annotator, open_browser=not options.no_browser)
    return 0
