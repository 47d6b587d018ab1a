"""Where the embedded models, pairs and configs lie: in a checkout, or inside the installed package."""

from pathlib import Path

PACKAGE = Path(__file__).parent.parent


def embedded(name: str) -> Path:
    """The path of an embedded folder or file, named as in the repository, like "assets/tiny-sdxl".

    Raises:
        ValueError: it is missing, because the installation is incomplete.
    """
    checkout = PACKAGE.parent
    root = checkout if (checkout / "pyproject.toml").is_file() else PACKAGE / "_embedded"
    path = root / name
    if not path.exists():
        raise ValueError(f"{path} is missing: this installation of diffpref is incomplete, install it again.")
    return path
