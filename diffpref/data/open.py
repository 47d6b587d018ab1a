"""The one door to a data set: opens what a name stands for (a file, a folder, a saved data set, the hub) as tables."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets

from diffpref.files.hub import may_be_hub_name, missing_path, stay_local_if_unreachable

# File suffix -> the builder of `datasets` that reads it.
BUILDERS = {".parquet": "parquet", ".json": "json", ".jsonl": "json", ".csv": "csv", ".tar": "webdataset"}
_NOT_DATA = ("dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json")
_SPLITS = {"train": "train|training", "validation": "validation|valid|val|dev", "test": "test|testing|eval"}


@dataclass(frozen=True, kw_only=True)
class OpenTable:
    """One file or one split of a data set, before anybody has asked what its columns mean."""

    where: str
    """What an error message calls it."""
    dataset: datasets.Dataset
    folder: Path | None
    """Where relative paths in it start; None for the hub."""

    @property
    def columns(self) -> list[str]:
        return self.dataset.column_names


def open_tables(source: str | Path, *, split: str, revision: str | None = None) -> list[OpenTable]:
    """One table for each file or split that the source stands for.

    Raises:
        ValueError: nothing there, a file that cannot be read, a split that it does not have, or a hub that does not
            answer; the message has the reason.
    """
    path = Path(source).expanduser()
    if not path.exists():
        return [_hub(str(source), split, revision)]
    if revision is not None:
        raise ValueError(f"{source} is a local path, revision {revision!r} is for hub data sets: leave it out.")
    if path.is_file():
        _no_split(source, split)
        return [_file(path, path.name)]
    if is_saved(path):
        return [_saved(path, split)]
    return [_file(file, file.relative_to(path).as_posix()) for file in _data_files(path, split)]


def is_saved(folder: Path) -> bool:
    """Whether `datasets.save_to_disk` wrote the folder."""
    return any((folder / name).is_file() for name in ("dataset_dict.json", "state.json"))


def _no_split(source: str | Path, split: str) -> None:
    if split != "train":
        raise ValueError(f"{source} has no splits, but split {split!r} was asked for: leave --split out.")


def _file(path: Path, where: str) -> OpenTable:
    builder = BUILDERS.get(path.suffix.lower())
    if builder is None:
        raise ValueError(f"{path} is no file that can be read: the suffix must be one of {', '.join(BUILDERS)}.")
    # Without this the captions "None", "null" and "NA" would be read as missing.
    options: dict[str, Any] = {"keep_default_na": False} if builder == "csv" else {}
    try:
        dataset = datasets.load_dataset(builder, data_files={"train": str(path)}, split="train", **options)
    except Exception as problem:  # each builder raises its own
        cause = problem.__cause__ or problem
        raise ValueError(f"{path} cannot be read as {builder}: {type(cause).__name__}: {cause}") from problem
    return OpenTable(where=where, dataset=dataset, folder=path.parent)


def _data_files(root: Path, split: str) -> list[Path]:
    files = [f for f in sorted(root.rglob("*")) if f.suffix.lower() in BUILDERS and f.name not in _NOT_DATA]
    builders = sorted({BUILDERS[f.suffix.lower()] for f in files})
    if not files:
        raise ValueError(
            f"{root} holds neither data files ({', '.join(BUILDERS)}) nor folders w/ and l/, or chosen/ and rejected/. "
            "If nobody has compared its images yet: diffpref label-pairs."
        )
    if len(builders) > 1:
        raise ValueError(
            f"{root} holds data files of several kinds ({', '.join(builders)}): name the file that is meant."
        )
    split_of = {f: _split_of(f.relative_to(root).as_posix()) for f in files}
    if all(name is None for name in split_of.values()):
        _no_split(root, split)
        return files
    chosen = [f for f, name in split_of.items() if name == split]
    if not chosen:
        splits = sorted({name for name in split_of.values() if name})
        raise ValueError(f"{root} has no file of split {split!r}; by their names it has {', '.join(splits)}.")
    return chosen


def _split_of(name: str) -> str | None:
    """The split a file name says, like "data/train-00000-of-00002.parquet"."""
    words = set(re.split(r"[^a-z]+", name.lower()))
    return next((split for split, forms in _SPLITS.items() if words & set(forms.split("|"))), None)


def _saved(path: Path, split: str) -> OpenTable:
    saved = datasets.load_from_disk(str(path))
    if isinstance(saved, datasets.DatasetDict):
        if split not in saved:
            raise ValueError(f"{path} has no split {split!r}; it has {', '.join(map(str, saved))}.")
        return OpenTable(where=f"{path.name}[{split}]", dataset=saved[split], folder=path)
    _no_split(path, split)
    return OpenTable(where=path.name, dataset=saved, folder=path)


def _hub(name: str, split: str, revision: str | None) -> OpenTable:
    if not may_be_hub_name(name) or Path(name).suffix in BUILDERS:
        raise ValueError(
            f"{name} does not exist: {missing_path(name)}. Check the path (a hub data set is named OWNER/NAME)."
        )
    stay_local_if_unreachable()
    try:
        dataset = datasets.load_dataset(name, split=split, revision=revision)
    except Exception as problem:  # hub, network and builder errors have no common class
        raise ValueError(
            f"{name} is neither a local path nor a hub data set that can be reached "
            f"({type(problem).__name__}: {problem}). Check the spelling, the split {split!r} and the network."
        ) from problem
    return OpenTable(where=f"{name}[{split}]", dataset=dataset, folder=None)
