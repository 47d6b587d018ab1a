"""The bugs that the tests must find: TOML files in a folder for each suite, read and checked against the sources."""

import sys
from dataclasses import dataclass
from pathlib import Path

if sys.version_info >= (3, 11):
    import tomllib
else:  # what pytest itself reads its settings with
    import tomli as tomllib

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
SUITE = "suite.toml"


@dataclass(frozen=True)
class Bug:
    """One wrong text in the place of a right one."""

    file: str
    old: str
    new: str

    def planted(self) -> str:
        """The file's whole text with the bug in it.

        Raises:
            ValueError: the right text is not there exactly once, or the file would be no Python.
        """
        source = (ROOT / self.file).read_text(encoding="utf-8")
        if (count := source.count(self.old)) != 1:
            raise ValueError(f"{self.file}: {self.old!r} must be there once, and is there {count} times.")
        mutated = source.replace(self.old, self.new)
        try:
            compile(mutated, self.file, "exec")
        except SyntaxError as problem:
            raise ValueError(f"{self.file}: with {self.new!r} it is no Python: {problem}.") from None
        return mutated


@dataclass(frozen=True)
class Suite:
    """Bugs, the tests that must find them, and the libraries to load once for all."""

    name: str
    libraries: tuple[str, ...]
    tests: tuple[str, ...]
    bugs: tuple[Bug, ...]


def read_suite(name: str) -> Suite:
    """The suite of a folder beside this file."""
    how = _read(HERE / name / SUITE)
    files = [
        entry for path in sorted((HERE / name).glob("*.toml")) if path.name != SUITE for entry in _read(path)["files"]
    ]
    bugs = tuple(Bug(entry["file"], bug["old"], bug["new"]) for entry in files for bug in entry["bugs"])
    return Suite(name, tuple(how["libraries"]), tuple(how["tests"]), bugs)


def suites() -> list[str]:
    """The names of all suites."""
    return sorted(path.parent.name for path in HERE.glob(f"*/{SUITE}"))


def problems(bugs: tuple[Bug, ...]) -> list[str]:
    """What is wrong with the bugs themselves, a line each: code has changed, and they must follow it."""
    found = []
    for bug in bugs:
        try:
            bug.planted()
        except (ValueError, OSError) as problem:
            found.append(str(problem))
    return found


def _read(path: Path) -> dict:
    return tomllib.loads(path.read_text(encoding="utf-8"))
