"""Other people's names of columns and folders, in a table: which name means which is never guessed from its letters."""

import re
from collections.abc import Collection, Iterable, Mapping

_BETTER = (
    "better best winner winning wins win won w chosen preferred prefer good positive pos accepted accept liked like "
    "selected picked favored favoured upvoted yes"
)
_WORSE = (
    "worse worst loser losing loses lose lost l rejected reject dispreferred bad negative neg refused refuse disliked "
    "dislike declined discarded downvoted no"
)
_SIDES: Mapping[str, str] = {
    **dict.fromkeys(_BETTER.split(), "better"),
    **dict.fromkeys(_WORSE.split(), "worse"),
    # One word each, which "not" before a better word also makes.
    **dict.fromkeys("unpreferred nonpreferred unchosen unselected unpicked".split(), "worse"),
}
_NOT = {"not", "non", "un", "dis"}
_FILLERS = frozenset(
    "image images img imgs picture pictures pic photo jpg jpeg png webp path paths file files filename filepath sample "
    "output generation response".split()
)
"""Words that say that the column holds images, and nothing about which."""
_PLAIN: Mapping[str, str] = {
    **dict.fromkeys("prompt prompts caption captions text texts description instruction query".split(), "prompt"),
    **dict.fromkeys("original_prompt user_prompt image_caption image_prompt text_prompt".split(), "prompt"),
    **dict.fromkeys("image_description".split(), "prompt"),
    **dict.fromkeys("images image_paths image_path image_files image_list imgs pictures photos".split(), "images"),
    **dict.fromkeys("paths files file_paths candidates samples generations outputs".split(), "images"),
    **dict.fromkeys("scores score rewards reward ratings rating reward_scores".split(), "scores"),
    **dict.fromkeys("ranks rank rankings ranking".split(), "ranks"),
    **dict.fromkeys("models model model_names generators generator".split(), "models"),
}
_NUMBERED: Mapping[str, tuple[str, ...]] = {
    "jpg_0": ("jpg", "image", "img", "picture"),
    "jpg_1": ("jpg", "image", "img", "picture"),
    "label_0": ("label",),
    "label_1": ("label",),
    "image1": ("image", "img", "picture"),
    "image2": ("image", "img", "picture"),
    "votes_image1": ("votes", "votes_image", "votes_img"),
    "votes_image2": ("votes", "votes_image", "votes_img"),
}
"""A schema's name that ends in a digit -> what may stand before the same digit."""


def words_of(name: str) -> list[str]:
    """The words of a name in lower case: "chosenImage_path" has three."""
    parts = re.sub(r"(?<=[a-z])(?=[A-Z])|(?<=[A-Za-z])(?=[0-9])", " ", name)
    return [word for word in re.split(r"[^a-z0-9]+", parts.lower()) if word]


def side_of(name: str) -> str | None:
    """ "better" or "worse" where the name says so by the table, such as "image_w" or "not_preferred"; else None."""
    words = [word for word in words_of(name) if word not in _FILLERS]
    opposite = len(words) == 2 and words[0] in _NOT
    if len(words) != 1 + opposite:
        return None
    side = _SIDES.get(words[-1])
    if side == "better" and opposite:
        return "worse"
    return None if opposite else side


def two_sides(names: Iterable[str]) -> tuple[str, str] | None:
    """The one name of the better side and the one of the worse side, where exactly one name says each."""
    found: dict[str, list[str]] = {"better": [], "worse": []}
    for name in names:
        if (side := side_of(name)) is not None:
            found[side].append(name)
    if len(found["better"]) != 1 or len(found["worse"]) != 1:
        return None
    return found["better"][0], found["worse"][0]


def meanings(columns: Collection[str]) -> dict[str, str]:
    """The schemas' names -> the column that means the same; a name that two columns could mean is left out."""
    found: dict[str, list[str]] = {}
    for column in columns:
        words = words_of(column)
        plain, before = _PLAIN.get("_".join(words)), "_".join(words[:-1])
        numbered = [name for name, known in _NUMBERED.items() if before in known and words[-1] == name[-1]]
        for name in [plain, *numbered] if plain else numbered:
            found.setdefault(name, []).append(column)
    one = {name: same[0] for name, same in found.items() if len(same) == 1}
    if (sides := two_sides(columns)) is not None:
        one |= {"chosen": sides[0], "rejected": sides[1]}
    if "prompt" in one:
        one.setdefault("caption", one["prompt"])
    return one


def schema_name(name: str) -> str | None:
    """ "chosen" or "rejected" for a word of the table; else None."""
    side = side_of(name)
    return None if side is None else {"better": "chosen", "worse": "rejected"}[side]
