"""The entries of a labelling run's lists: its generators, its rewards, and the packs that are made."""

import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Annotated, Any

from annotated_types import Ge

from diffpref.files.identity import file_hash
from diffpref.label.forms import FORM, Form
from diffpref.label.forms.lists import Lists
from diffpref.label.generators import GENERATOR, Source
from diffpref.label.provenance import own_code
from diffpref.settings.entries import read_entry
from diffpref.settings.typed import build

NAME = re.compile(r"[A-Za-z0-9_]+([.-][A-Za-z0-9_]+)*")
"""Names become folders and parts of image ids."""
WITHOUT_PAIRS: Mapping[str, Any] = {
    "pairs": "all",
    "min_gap": 0.0,
    "same_generator": False,
    "min_candidates": 0,
}
"""What the digest of a pack holds of the fields that its form does not have."""


def check_name(what: str, name: str) -> None:
    """Raise ValueError where a name of the user's cannot be a folder's."""
    if not NAME.fullmatch(name) or (what == "generator" and "." in name):
        dots = "" if what == "generator" else " or ."
        raise ValueError(f"the {what} name must consist of letters, digits and _, joined by -{dots}, got {name!r}.")


@dataclass(frozen=True)
class GeneratorSettings:
    """One source of images, and how many it draws."""

    name: str
    """A short name, which becomes part of every image's id."""
    source: Annotated[Source, GENERATOR]
    samples: Annotated[int, Ge(1)] = 1
    """Images of each prompt."""
    batch_size: Annotated[int, Ge(1)] = 4
    """Images that are drawn at once."""

    def __post_init__(self) -> None:
        check_name("generator", self.name)

    @classmethod
    def from_entry(cls, values: Mapping[str, Any], where: str) -> "GeneratorSettings":
        """The settings of an entry; without a `generator`, what it names says which one it is."""
        named = [key for key in ("pretrained_model_name_or_path", "function") if values.get(key)]
        if "generator" not in values:
            if len(named) != 1:
                name = values.get("name")
                raise ValueError(f"{where}: generator {name!r} needs either pretrained_model_name_or_path or function.")
            values = {"generator": "function" if "function" in named else "pipeline", **values}
        return read_entry(cls, values, where)

    def identity(self, hashes: Callable[[Path], str] = file_hash) -> Mapping[str, Any]:
        """What the images depend on: the settings, and the hash or commit of the weights.

        Args:
            hashes: the SHA-256 of a file; a caller may remember them.

        Raises:
            ValueError: the checkpoint or function cannot be found.
        """
        before = {"name": self.name, **self.source.settings(), "samples": self.samples}
        return {**before, **self.source.contents(hashes), **own_code(self.source)}


@dataclass(frozen=True)
class RewardUse:
    """One reward of the run, under a name that its scores are kept by."""

    name: str
    reward: str
    """A name that `find_reward` takes."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    held_out: bool = False
    """Scored and reported, but without a say in the labels: the guard against a hacked reward."""
    batch_prompts: Annotated[int, Ge(1)] = 8
    """Prompts whose images are handed to the reward at once."""

    def __post_init__(self) -> None:
        check_name("reward", self.name)

    @classmethod
    def from_entry(cls, values: Mapping[str, Any], where: str) -> "RewardUse":
        """The use of an entry, in which the reward's own settings stand next to these keys."""
        if not isinstance(values.get("reward"), str):
            raise ValueError(f"{where} needs `reward: NAME`.")
        settings, own = dict(values), dict[str, Any]()
        for name in (f.name for f in fields(cls) if f.name != "settings"):
            if name in settings:
                own[name] = settings.pop(name)
        return build(cls, {"name": own["reward"], **own, "settings": settings}, where)

    def to_entry(self) -> dict[str, Any]:
        own = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "settings"}
        return {**own, **self.settings}


@dataclass(frozen=True)
class PackSettings:
    """One data set that training reads."""

    name: str
    form: Annotated[Form, FORM] = field(default_factory=Lists)

    def __post_init__(self) -> None:
        check_name("pack", self.name)

    def identity(self) -> Mapping[str, Any]:
        """What the rows depend on besides the labels."""
        own = asdict(self.form)  # type: ignore[call-overload]
        return {"name": self.name, "form": FORM.name_of(type(self.form)), **WITHOUT_PAIRS, **own, **own_code(self.form)}
