"""The documentation says what is there: messages that the code raises, README's sections, files that exist."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGES = sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "docs").rglob("*.md"))
GAP = "\0"


def texts() -> list[str]:
    """All text in the package, with a gap in the place of each value."""
    found = []
    for file in (ROOT / "diffpref").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                parts = [part.value if isinstance(part, ast.Constant) else GAP for part in node.values]
                found.append("".join(map(str, parts)))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value)
    return found


def messages() -> list[str]:
    """The messages in the first column of the page of remedies."""
    page = (ROOT / "docs/troubleshooting.md").read_text(encoding="utf-8")
    return re.findall(r"^\| `([^`]+)` \|", page, flags=re.MULTILINE)


def test_every_message_of_the_remedies_is_in_the_code() -> None:
    said = texts()
    assert len(messages()) > 30
    for message in messages():
        pattern = re.compile(".*".join(re.escape(piece.strip()) for piece in message.split("...")), re.DOTALL)
        assert any(pattern.search(text) for text in said), f"no code says {message!r}"


@pytest.mark.parametrize("page", PAGES)
def test_every_file_that_a_page_names_exists(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    named = re.findall(r"`((?:diffpref|examples|tests|configs|benchmarks|assets)/[\w./-]+)`", text)
    named += re.findall(r"(?:--8<-- \"|: |--\w+ )((?:examples|diffpref|configs)/[\w./-]+\.(?:py|yaml))", text)
    missing = [name for name in named if not (ROOT / name).exists() and name != "configs/mine.yaml"]
    assert not missing, f"{page} names {missing}"
