"""A member of every axis from a file outside the package: an address, two steps, and no line in diffpref/."""

import hashlib
from pathlib import Path

ROOT = Path(__file__).parents[1]
MEMBERS = ROOT / "examples" / "extension"
CHOICES = {
    "objective": {"objective": "objective.py:Hinge"},
    "probe": {"probe": "probe.py:Opposite"},
    "source": {"source": "source.py:Rejudged"},
    "adapter": {"adapter": "adapter.py:SomeWeights"},
    "optimizer": {"optimizer": "optimizer.py:SGD"},
    "loss_mode": {"loss_mode": "loss_mode.py:GroupByGroup"},
}


def package() -> str:
    """A digest of every file of the package."""
    digest = hashlib.sha256()
    for file in sorted((ROOT / "diffpref").rglob("*.py")):
        digest.update(file.read_bytes())
    return digest.hexdigest()
