"""What mkdocs does not do by itself: pages reach into the repository, and are still read as files there.

A line `<!-- README: HEADING -->` becomes README's section of that heading, and with CHANGELOG all sections of that name
in it, so that nothing is written twice. Links to configs and pictures, which GitHub finds beside docs/, point to copies
in the site.
"""

import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parent.parent
COPIED = ("configs/**/*.yaml", "assets/*.png", "assets/*.svg")
SECTION = re.compile(r"<!-- (README|CHANGELOG): (.+?) -->")


def on_files(files: Files, config: Any, **_: Any) -> Files:
    """The files of docs/, and what they link to beside it."""
    for pattern in COPIED:
        for path in sorted(ROOT.glob(pattern)):
            place = path.relative_to(ROOT).as_posix()
            files.append(File.generated(config, place, abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """The page with README's sections in it and with links that hold inside the site."""
    text = SECTION.sub(lambda found: section(*found.groups()), markdown)
    up = "../" * page.file.src_uri.count("/")
    text = re.sub(r"\]\((?:\.\./)*(configs|assets)/", rf"]({up}\1/", text)
    text = re.sub(r"\]\((?:\.\./)+README\.md", rf"]({up}index.md", text)
    return re.sub(r"\]\(docs/", f"]({up}", text)


def section(name: str, heading: str) -> str:
    """The text under a heading of README.md or CHANGELOG.md, without the heading.

    Raises:
        ValueError: there is no such heading.
    """
    parts = re.split(r"^#{1,3} (.+)$", (ROOT / f"{name}.md").read_text(encoding="utf-8"), flags=re.MULTILINE)
    found = [text.strip() for title, text in zip(parts[1::2], parts[2::2], strict=True) if title == heading]
    if not found:
        raise ValueError(f"{name}.md has no heading {heading!r}; it has {', '.join(parts[1::2])}.")
    return "\n".join(found)
