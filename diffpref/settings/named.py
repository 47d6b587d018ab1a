"""A config by its file or, from any folder, by the name of one that comes with the package."""

import difflib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from diffpref.files.embedded import embedded
from diffpref.settings.typed import read_yaml

CONFIGS, SUFFIX = "configs", ".yaml"
EMBEDDED = ("assets/", "configs/", "examples/")
"""How the paths begin, in the configs, of what comes with the package."""


def read_config(given: Path) -> tuple[dict[str, Any], Path]:
    """The keys of a config, and its file.

    A name like tiny-sdxl/dpo, or configs/tiny-sdxl/dpo.yaml where no such file is, stands for the package's own; the
    models and data that come with the package are then found wherever the command is run.

    Raises:
        ValueError: no such file and no such name, or a file that is no config.
    """
    if given.is_file():
        return read_yaml(given), given
    if (file := _named(given)) is None:
        raise ValueError(_missing(given))
    return {key: _found(value) for key, value in read_yaml(file).items()}, file


def names() -> list[str]:
    """The names of the package's own configs, like tiny-sdxl/dpo."""
    folder = embedded(CONFIGS)
    return sorted(path.relative_to(folder).with_suffix("").as_posix() for path in folder.rglob(f"*{SUFFIX}"))


def _named(given: Path) -> Path | None:
    if given.is_absolute():
        return None
    name = given.as_posix().removeprefix(f"{CONFIGS}/").removesuffix(SUFFIX)
    return embedded(f"{CONFIGS}/{name}{SUFFIX}") if name in names() else None


def _missing(given: Path) -> str:
    if given.is_absolute():
        return f"{given}: no such config file."
    name = given.as_posix().removeprefix(f"{CONFIGS}/").removesuffix(SUFFIX)
    near = difflib.get_close_matches(name, names(), n=1)
    hint = f" Did you mean {near[0]}?" if near else f" Those are {', '.join(names())}."
    return f"{given}: no such config file, and no config of this name comes with diffpref.{hint}"


def _found(value: Any) -> Any:
    """The value with the path of what comes with the package, where the folder has nothing of this name itself."""
    if isinstance(value, Mapping):
        return {key: _found(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_found(item) for item in value]
    if not isinstance(value, str) or not value.startswith(EMBEDDED):
        return value
    # What is given by its address has its name behind the file's.
    file, colon, name = value.partition(":")
    return value if Path(file).exists() else f"{embedded(file)}{colon}{name}"
