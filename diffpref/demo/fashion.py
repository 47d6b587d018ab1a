"""Fashion-MNIST's classifier, and the Frechet distance in its features; for evaluation, never for labels.

Axes: n pictures, m real pictures or points that stand for them, d features, c classes.
"""

import json
import math
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float
from safetensors.torch import load_file
from torch import Tensor, nn

from diffpref.evaluate.statistics import frechet_distance
from diffpref.files.embedded import embedded

FOLDER = "assets/fashion-classifier"
_CHUNK = 500


class FashionClassifier(nn.Module):
    """Class logits of 28 x 28 grey pictures, and the features that the logits are made of."""

    def __init__(self, *, widths: Sequence[int], features: int, classes: int) -> None:
        super().__init__()
        first, second, third = widths
        self.architecture = {"widths": list(widths), "features": features, "classes": classes}
        layers = [
            *(nn.Conv2d(1, first, 5, 2, 2, bias=False), nn.BatchNorm2d(first), nn.ReLU()),
            *(nn.Conv2d(first, second, 3, 1, 1, bias=False), nn.BatchNorm2d(second), nn.ReLU()),
            *(nn.Conv2d(second, third, 3, 2, 1, bias=False), nn.BatchNorm2d(third), nn.ReLU()),
            *(nn.Conv2d(third, third, 3, 1, 1, bias=False), nn.BatchNorm2d(third), nn.ReLU()),
        ]
        self.convolutions = nn.Sequential(*layers, nn.AvgPool2d(3, 2), nn.Flatten())
        self.trunk = nn.Sequential(nn.Linear(9 * third, features, bias=False), nn.BatchNorm1d(features))
        self.classes = nn.Linear(features, classes)

    def features(self, x: Float[Tensor, "n 1 28 28"]) -> Float[Tensor, "n d"]:
        """The layer before the logits, of pictures in [-1, 1]; each feature has unit variance over training pictures.

        It is taken before its rectifier, where it is nearer to the Gaussian that the Frechet distance assumes."""
        return self.trunk(self.convolutions((x + 1) / 2))

    def forward(self, x: Float[Tensor, "n 1 28 28"]) -> Float[Tensor, "n c"]:
        """The logit of each class."""
        return self.classes(F.relu(self.features(x)))


def load_classifier(directory: Path | None = None) -> FashionClassifier:
    """The embedded classifier, or the one in `directory`, on the CPU in float32.

    Raises:
        ValueError: a file of it is missing.
    """
    directory = directory or embedded(FOLDER)
    for name in ("config.json", "classifier.safetensors"):
        if not (directory / name).is_file():
            remedy = "assets/make/fashion_classifier.py writes both files"
            raise ValueError(f"no classifier in {directory}: {name} is missing; {remedy}.")
    classifier = FashionClassifier(**json.loads((directory / "config.json").read_text())["architecture"])
    tensors = load_file(directory / "classifier.safetensors")
    classifier.load_state_dict({k: v.float() if v.is_floating_point() else v for k, v in tensors.items()})
    return classifier.eval().requires_grad_(False)


def sigma_points(mean: Float[Tensor, " d"], covariance: Float[Tensor, "d d"]) -> Float[Tensor, "m d"]:
    """2 d points whose mean and unbiased covariance are exactly the given ones, in float64.

    They are mean +- sqrt((2 d - 1) / 2) times each column of a root of the covariance."""
    values, vectors = torch.linalg.eigh(covariance.double())
    root = vectors * values.clamp(min=0).sqrt() * math.sqrt((2 * len(mean) - 1) / 2)
    return torch.cat([mean.double() + root.T, mean.double() - root.T])


def load_real_features(split: str = "test", directory: Path | None = None) -> Float[Tensor, "m d"]:
    """Points with the mean and covariance of the real pictures' features, so that no data set is needed.

    Args:
        split: "train" stands for 60,000 pictures, which the classifier has learned; "test" for 10,000 others.

    Raises:
        ValueError: another split, or the file is missing.
    """
    if split not in ("train", "test"):
        raise ValueError(f'split must be "train" or "test", got {split!r}.')
    path = (directory or embedded(FOLDER)) / "real.safetensors"
    if not path.is_file():
        raise ValueError(f"{path} is missing; assets/make/fashion_classifier.py writes it.")
    moments = load_file(path)
    return sigma_points(moments[f"{split}_mean"], moments[f"{split}_covariance"])


@torch.no_grad()
def classifier_features(classifier: FashionClassifier, pictures: Float[Tensor, "n 1 28 28"]) -> Float[Tensor, "n d"]:
    """The features of any number of pictures in [-1, 1], some hundred at a time, without a graph."""
    return torch.cat([classifier.features(part) for part in pictures.split(_CHUNK)])


def fashion_frechet(
    classifier: FashionClassifier, pictures: Float[Tensor, "n 1 28 28"], real: Float[Tensor, "m d"]
) -> float:
    """The squared Frechet distance between the features of pictures in [-1, 1] and those of real ones.

    Args:
        real: features of real pictures, or what `load_real_features` returns.

    Raises:
        ValueError: fewer than two pictures, or pictures outside [-1, 1].
    """
    if len(pictures) < 2:
        raise ValueError(f"a Frechet distance needs at least two pictures, got {len(pictures)}.")
    low, high = pictures.min().item(), pictures.max().item()
    if not -1.01 <= low <= high <= 1.01:
        raise ValueError(
            f"pictures must be in [-1, 1], got {low:g} to {high:g}: clamp them, or scale 0 to 255 by x / 127.5 - 1."
        )
    return frechet_distance(classifier_features(classifier, pictures).cpu(), real.cpu())
