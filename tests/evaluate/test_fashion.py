"""The classifier of Fashion-MNIST, and the Frechet distance in its features."""

import gzip
from pathlib import Path

import numpy as np
import pytest
import torch

from diffpref.demo.fashion import (
    FashionClassifier,
    classifier_features,
    fashion_frechet,
    load_classifier,
    load_real_features,
    sigma_points,
)
from diffpref.evaluate.statistics import frechet_distance

SHIPPED = Path(__file__).parents[2] / "assets" / "fashion-classifier"
DATA = Path("/usr/share/datasets/fashion-mnist")
shipped = pytest.mark.skipif(
    not (SHIPPED / "classifier.safetensors").is_file(), reason="assets/fashion-classifier has not been made"
)


def random_classifier() -> FashionClassifier:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        classifier = FashionClassifier(widths=(4, 4, 6), features=8, classes=10)
        classifier.train()(2 * torch.rand(64, 1, 28, 28) - 1)  # normalises as a trained one does
        return classifier.eval().requires_grad_(False)


def pictures(n: int, seed: int = 0) -> torch.Tensor:
    return 2 * torch.rand(n, 1, 28, 28, generator=torch.Generator().manual_seed(seed)) - 1


def test_shapes_and_that_logits_are_made_of_features() -> None:
    classifier, x = random_classifier(), pictures(5)
    features = classifier.features(x)
    assert features.shape == (5, 8) and classifier(x).shape == (5, 10)
    torch.testing.assert_close(classifier.classes(features.relu()), classifier(x))


def test_features_do_not_hang_on_the_chunk() -> None:
    classifier, x = random_classifier(), pictures(1001)
    alone = torch.cat([classifier.features(x[i : i + 1]) for i in (0, 499, 500, 1000)])
    torch.testing.assert_close(classifier_features(classifier, x)[[0, 499, 500, 1000]], alone, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("rank", [3, 5])
def test_sigma_points_have_the_mean_and_covariance(rank: int) -> None:
    """Also where the covariance has no inverse: 5 features of rank 3."""
    generator = torch.Generator().manual_seed(0)
    root = torch.randn(rank, 5, generator=generator, dtype=torch.float64)
    mean, covariance = torch.randn(5, generator=generator, dtype=torch.float64), root.T @ root
    points = sigma_points(mean, covariance)
    torch.testing.assert_close(points.mean(0), mean)
    torch.testing.assert_close(points.T.cov(), covariance)


def test_stored_moments_give_the_distance_of_the_vectors() -> None:
    """Between two sets of vectors, and one set and the other's moments, the distance is the same."""
    generator = torch.Generator().manual_seed(0)
    a = torch.randn(50, 6, generator=generator, dtype=torch.float64)
    b = 1 + 2 * torch.randn(70, 6, generator=generator, dtype=torch.float64)
    assert frechet_distance(a, sigma_points(b.mean(0), b.T.cov())) == pytest.approx(frechet_distance(a, b), rel=1e-9)


def test_the_distance_of_pictures_is_that_of_their_features() -> None:
    classifier, x, y = random_classifier(), pictures(40), pictures(30, seed=1).sign()
    real = classifier.features(y)
    assert fashion_frechet(classifier, y, real) == pytest.approx(0, abs=1e-6)
    assert fashion_frechet(classifier, x, real) == pytest.approx(frechet_distance(classifier.features(x), real))


def test_pictures_of_another_range_or_count_are_refused() -> None:
    classifier = random_classifier()
    real = classifier.features(pictures(9))
    with pytest.raises(ValueError, match=r"must be in \[-1, 1\], got .* to 2\d\d"):
        fashion_frechet(classifier, 127.5 * (pictures(4) + 1), real)
    with pytest.raises(ValueError, match=r"must be in \[-1, 1\], got nan"):
        fashion_frechet(classifier, torch.full((4, 1, 28, 28), torch.nan), real)
    with pytest.raises(ValueError, match="at least two pictures, got 1"):
        fashion_frechet(classifier, pictures(1), real)


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="config.json is missing"):
        load_classifier(tmp_path)
    with pytest.raises(ValueError, match="real.safetensors is missing"):
        load_real_features("test", tmp_path)
    with pytest.raises(ValueError, match="got 't10k'"):
        load_real_features("t10k", tmp_path)


@shipped
def test_the_shipped_classifier_is_small_and_its_floor_is_low() -> None:
    classifier = load_classifier()
    assert sum(parameter.numel() for parameter in classifier.parameters()) <= 300_000
    assert classifier.features(pictures(2)).shape == (2, 64)
    train, test = load_real_features("train"), load_real_features("test")
    assert train.shape == test.shape == (128, 64)
    assert 0 < frechet_distance(train, test) < 0.1 < fashion_frechet(classifier, pictures(300), test)


@shipped
@pytest.mark.skipif(not DATA.is_dir(), reason="Debian's dataset-fashion-mnist is not installed")
def test_the_shipped_classifier_on_real_pictures() -> None:
    """600 test pictures; the standard error of an accuracy of 0.93 over them is 0.01."""
    data = gzip.decompress((DATA / "t10k-images-idx3-ubyte.gz").read_bytes())
    x = torch.from_numpy(np.frombuffer(data, np.uint8, 600 * 784, 16).reshape(600, 1, 28, 28).copy()) / 127.5 - 1
    named = gzip.decompress((DATA / "t10k-labels-idx1-ubyte.gz").read_bytes())
    labels = torch.from_numpy(np.frombuffer(named, np.uint8, 600, 8).copy())
    classifier = load_classifier()
    features = classifier_features(classifier, x)
    assert ((classifier.classes(features.relu()).argmax(1) == labels).float().mean() > 0.9).item()
    assert frechet_distance(features, load_real_features("test")) < 1
