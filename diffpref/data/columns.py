"""The user's names of columns: what the setting `columns` and the flag --columns say."""

from collections.abc import Sequence


def parse_columns(texts: Sequence[str]) -> dict[str, str]:
    """The schema's name of a column -> the source's, from texts like "prompt=my_caption".

    Raises:
        ValueError: a text of another form, or a name that is given twice.
    """
    columns: dict[str, str] = {}
    for text in texts:
        name, equals, column = text.partition("=")
        if not (name and equals and column):
            raise ValueError(f"columns must be written as NAME=COLUMN, like prompt=my_caption, got {text!r}.")
        if name in columns:
            raise ValueError(f"columns names {name} twice ({columns[name]} and {column}): keep one.")
        columns[name] = column
    return columns
