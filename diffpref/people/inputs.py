"""What `diffpref label-pairs` is given, turned into pairs: two folders, a folder for each prompt, or a label run."""

from collections.abc import Sequence
from itertools import combinations
from pathlib import Path

from diffpref.data.bad_row import listed
from diffpref.data.folders import IMAGE_SUFFIXES, listed_captions, pair_folders, read_folders
from diffpref.files.identity import content_key
from diffpref.people.drawn import is_label_run, pairs_of_run
from diffpref.people.pairs import PAIRS, Pair, extend_pairs, label_files, read_labels, read_pairs

TWO = (("a", "b"), ("A", "B"), ("left", "right"), ("first", "second"), ("0", "1"), ("1", "2"))
"""Names of two folders of images that are compared, of which neither is better."""
PROMPT_FILES = ("prompt.txt", "caption.txt")
FORMS = """What can be labelled:
  a folder with a/ and b/: two images of one name are a pair, its caption is NAME.txt in either or beside them
  a folder with a folder for each prompt: its images are compared with each other, its prompt is prompt.txt in it
  the output folder of `diffpref label`
  a folder with pairs.json, which an earlier start or a training run wrote"""


def prepare(folder: Path, *, max_pairs: int) -> tuple[Path, list[str]]:
    """Writes pairs.json where there is none, and adds pairs whose images are new; the folder that has it, and lines.

    Args:
        max_pairs: how many pairs are asked at most, spread evenly over the prompts; those there already stay.

    Raises:
        ValueError: nothing of a known form, or an image without its partner or caption.
    """
    sides, inner = _two_folders(folder), _prompt_folders(folder)
    if is_label_run(folder):
        folder, (pairs, lines) = folder / "people", pairs_of_run(folder, folder / "people", max_pairs)
    elif sides is not None:
        pairs, lines = _pairs_of_two(folder, sides), []
    elif inner:
        pairs, lines = _pairs_of_prompts(folder, inner)
    elif (folder / PAIRS).is_file():
        return folder, []
    elif pair_folders(folder):
        raise ValueError(f"{folder} is labelled already, by the names of its folders: train on it as it is.")
    else:
        raise ValueError(f"{folder / PAIRS} does not exist, and nothing here can be made into it. {FORMS}")
    old = read_pairs(folder) if (folder / PAIRS).is_file() else []
    if not {pair.id for pair in old} <= {pair.id for pair in pairs}:
        # Another program's pairs, or images that are gone, which the page names.
        return folder, []
    return folder, [*lines, *_ask(folder, old, pairs, max_pairs)]


def _ask(folder: Path, old: Sequence[Pair], pairs: Sequence[Pair], max_pairs: int) -> list[str]:
    """Adds pairs to the old ones in pairs.json, all with today's captions; the lines that say so."""
    if not old and (files := label_files(folder)):
        raise ValueError(f"{files[0]} has answers without {PAIRS}: put {PAIRS} back, or delete the answers.")
    changed = [pair.id for pair in old if pair.changed(folder)]
    if told := sorted(set(changed) & set(read_labels(folder) if old else ())):
        raise ValueError(
            f"{folder}: the images of {len(told)} answered pairs are not those that were compared (the first pair is "
            f"{told[0]!r}): put them back, give the new ones other names, or delete the answers."
        )
    captions, known = {pair.id: pair.prompt for pair in pairs}, {pair.id for pair in old}
    kept = [Pair(pair.id, captions[pair.id], pair.images) for pair in old]
    new = [pair for pair in _spread(pairs) if pair.id not in known][: max(max_pairs - len(old), 0)]
    if kept + new != old or changed:
        extend_pairs(folder, kept + new)
    lines = [f"{len(new)} new pairs in {folder / PAIRS}"] if new else []
    if len(kept + new) < len(pairs):
        lines.append(f"{len(kept + new)} of {len(pairs)} pairs are asked: raise --max_pairs for more")
    return lines


def _spread(pairs: Sequence[Pair]) -> list[Pair]:
    """In an order that is random and the same at every start: one pair of each prompt, then a second of each."""
    of_prompt: dict[str, int] = {}
    turns = []
    for pair in sorted(pairs, key=lambda pair: content_key(pair.id)):
        of_prompt[pair.prompt] = of_prompt.get(pair.prompt, -1) + 1
        turns.append((of_prompt[pair.prompt], pair))
    return [pair for _, pair in sorted(turns, key=lambda turn: turn[0])]


def _two_folders(folder: Path) -> tuple[Path, Path] | None:
    names = ((folder / one, folder / other) for one, other in TWO)
    return next((pair for pair in names if pair[0].is_dir() and pair[1].is_dir()), None)


def _pairs_of_two(folder: Path, sides: tuple[Path, Path]) -> list[Pair]:
    rows = read_folders(folder, sides, on_bad_row="skip", max_rows=None)
    if rows.problems:
        total = sum(rows.dropped.values())
        raise ValueError(f"{folder}: {total} images cannot be asked about:\n{listed(rows.problems, total)}")
    pairs = []
    for row in rows:
        first, second = (Path(str(image)).relative_to(folder) for image in row.images)
        name = first.relative_to(sides[0].name).with_suffix("").as_posix()
        pairs.append(Pair(name, row.prompt, (first.as_posix(), second.as_posix())))
    return pairs


def _prompt_folders(folder: Path) -> dict[Path, list[Path]]:
    """The inner folders with two or more images, and these."""
    if not folder.is_dir() or pair_folders(folder):
        return {}
    inner = [path for path in sorted(folder.iterdir()) if path.is_dir() and not path.name.startswith((".", "@", "_"))]
    found = {path: [file for file in sorted(path.iterdir()) if _is_image(file)] for path in inner}
    return {path: images for path, images in found.items() if len(images) > 1}


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith(".") and path.is_file()


def _pairs_of_prompts(folder: Path, inner: dict[Path, list[Path]]) -> tuple[list[Pair], list[str]]:
    listed = listed_captions(folder, (folder, folder))
    pairs, by_name = [], []
    for path, images in inner.items():
        files = [
            file for file in (*(path / name for name in PROMPT_FILES), folder / f"{path.name}.txt") if file.is_file()
        ]
        text = files[0].read_text(encoding="utf-8-sig") if files else listed.get(path.name, "")
        if files and not text.strip():
            raise ValueError(f"{files[0]} is empty: write the prompt of the images in {path}.")
        if not text:
            by_name.append(path.name)
        prompt = text.strip() or path.name.replace("_", " ")
        for one, other in combinations(images, 2):
            names = one.relative_to(folder).as_posix(), other.relative_to(folder).as_posix()
            pairs.append(Pair(f"{path.name}/{one.stem}-{other.stem}", prompt, names))
    lines = []
    if by_name:
        lines.append(
            f"{len(by_name)} of {len(inner)} prompts are the names of their folders, like {by_name[0]!r}: write "
            f"{PROMPT_FILES[0]} into a folder to give it another one"
        )
    return pairs, lines
