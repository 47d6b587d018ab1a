"""48 pairs of one's own drawing, in folders as the README has them: outlined shapes, and the same soft and pale."""

from pathlib import Path

from PIL import Image, ImageDraw, ImageFilter

COLOURS = ("red", "blue", "green", "yellow", "purple", "orange")
SHAPES = {
    "square": [(48, 48), (208, 48), (208, 208), (48, 208)],
    "triangle": [(128, 40), (216, 208), (40, 208)],
    "star": [(128, 32), (155, 100), (220, 104), (168, 146), (188, 212), (128, 172), (68, 212), (88, 146), (36, 104)],
    "house": [(128, 40), (208, 110), (208, 208), (48, 208), (48, 110)],
    "tree": [(128, 30), (200, 160), (145, 160), (145, 215), (111, 215), (111, 160), (56, 160)],
    "boat": [(40, 150), (216, 150), (180, 205), (76, 205)],
    "kite": [(128, 30), (200, 110), (128, 225), (56, 110)],
    "arrow": [(40, 100), (140, 100), (140, 50), (220, 128), (140, 206), (140, 156), (40, 156)],
}


def save_drawn_pairs(folder: Path) -> Path:
    """w/, l/ and a caption for each pair, such as "red boat"; 256 pixels."""
    for side in ("w", "l"):
        (folder / side).mkdir(parents=True)
    for colour in COLOURS:
        for shape, points in SHAPES.items():
            name = f"{colour}-{shape}"
            picture = Image.new("RGB", (256, 256), "white")
            pen = ImageDraw.Draw(picture)
            pen.polygon(points, fill=colour)
            pen.line([*points, points[0]], fill="black", width=10, joint="curve")
            picture.save(folder / "w" / f"{name}.png")
            pale = picture.filter(ImageFilter.GaussianBlur(9)).point(lambda level: int(128 + (level - 128) * 0.55))
            pale.save(folder / "l" / f"{name}.png")
            (folder / "w" / f"{name}.txt").write_text(f"{colour} {shape}")
    return folder
