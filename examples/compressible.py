"""A reward of your own for D3PO: pictures that JPEG compresses well, the paper's test reward (arXiv 2311.13231).

python -m diffpref.train --config configs/tiny-edm/d3po.yaml

A reward is a function of the pictures and their prompts with one number for each picture; higher is better. Name it
`labels: path/to/file.py:function`. This one has no use but to show within minutes whether learning from it works.
"""

import io

from PIL import Image

QUALITY = 95
"""JPEG's quality setting, in 1 to 100."""


def reward(images: list[Image.Image], prompts: list[str]) -> list[float]:
    """Minus the size of each picture as a JPEG file, in kB (1000 bytes)."""
    return [-_bytes(image) / 1000 for image in images]


def _bytes(image: Image.Image) -> int:
    stream = io.BytesIO()
    image.save(stream, "JPEG", quality=QUALITY)
    return stream.tell()
