"""Pictures laid out on one white sheet: sample grids while training, and before against after."""

from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

GUTTER = 6
INK, DIM = "#1c2024", "#667079"


def picture_grid(pictures: Sequence[Image.Image], columns: int, labels: Sequence[str] | None = None) -> Image.Image:
    """The pictures row by row, with white gutters and a label under each, cut to the width of its cell."""
    if not pictures or columns < 1:
        raise ValueError(f"a grid needs a picture and a column, got {len(pictures)} pictures in {columns} columns.")
    if labels is not None and len(labels) != len(pictures):
        raise ValueError(f"labels must name each of the {len(pictures)} pictures, got {len(labels)}.")
    columns = min(columns, len(pictures))
    width, height = (max(p.size[axis] for p in pictures) for axis in (0, 1))
    font = ImageFont.load_default(max(11, width // 24))
    strip = 0 if labels is None else _line_height(font) + 4
    rows = -(-len(pictures) // columns)
    size = (columns * (width + GUTTER) - GUTTER, rows * (height + strip + GUTTER) - GUTTER)
    sheet = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(sheet)
    for i, picture in enumerate(pictures):
        x, y = i % columns * (width + GUTTER), i // columns * (height + strip + GUTTER)
        _paste(sheet, picture, (x + (width - picture.width) // 2, y + (height - picture.height) // 2))
        if labels is not None:
            draw.text((x, y + height + 2), _cut(labels[i], font, width), DIM, font)
    return sheet


def side_by_side(before: Sequence[Image.Image], after: Sequence[Image.Image], captions: Sequence[str]) -> Image.Image:
    """One column for each caption, the picture before above the picture after; small pictures appear twice as large."""
    if not len(before) == len(after) == len(captions) > 0:
        raise ValueError(
            f"every caption needs a picture before and one after, got {len(captions)} captions, "
            f"{len(before)} before and {len(after)} after."
        )
    width, height = (max(p.size[axis] for p in (*before, *after)) for axis in (0, 1))
    scale = 2 if max(width, height) <= 160 else 1
    width, height = width * scale, height * scale
    font = ImageFont.load_default(max(13, width // 24))
    titles = [_wrap(caption, font, width) for caption in captions]
    line = _line_height(font)
    head = line * max(len(title) for title in titles) + GUTTER
    side = int(max(font.getlength("before"), font.getlength("after"))) + 2 * GUTTER
    sheet = Image.new("RGB", (side + len(captions) * (width + GUTTER), head + 2 * (height + GUTTER)), "white")
    draw = ImageDraw.Draw(sheet)
    for row, (name, pictures) in enumerate((("before", before), ("after", after))):
        y = head + row * (height + GUTTER)
        draw.text((GUTTER, y + height // 2), name, INK, font, anchor="lm")
        for column, picture in enumerate(pictures):
            # Lanczos: the pictures are drawings and photographs, whose edges nearest-neighbour would break into steps.
            large = picture.resize((picture.width * scale, picture.height * scale), Image.Resampling.LANCZOS)
            x = side + column * (width + GUTTER)
            _paste(sheet, large, (x + (width - large.width) // 2, y + (height - large.height) // 2))
    for column, title in enumerate(titles):
        middle = side + column * (width + GUTTER) + width // 2
        for i, text in enumerate(title):
            # Captions of one line stand next to the pictures, not at the top edge.
            y = head - GUTTER + (i - len(title)) * line
            draw.text((middle, y), text, DIM, font, anchor="ma")
    return sheet


def _paste(sheet: Image.Image, picture: Image.Image, at: tuple[int, int]) -> None:
    """Transparent parts let the white sheet through."""
    picture = picture.convert("RGBA")
    sheet.paste(picture, at, picture)


def _line_height(font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> int:
    return int(font.getbbox("Ag")[3]) + 4


def _cut(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int) -> str:
    """The text on one line, shortened with an ellipsis where it is wider than `width` pixels."""
    text = " ".join(text.split())
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text.rstrip() + "…") > width:
        text = text[:-1]
    return text.rstrip() + "…"


def _wrap(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int) -> list[str]:
    """The text on at most two lines, the second one cut."""
    words = text.split()
    for end in range(len(words), 0, -1):
        first = " ".join(words[:end])
        if font.getlength(first) <= width:
            rest = " ".join(words[end:])
            return [first, _cut(rest, font, width)] if rest else [first]
    return [_cut(text, font, width)]
