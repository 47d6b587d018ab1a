"""Train the classifier of Fashion-MNIST, in whose features generated pictures are compared with real ones.

    python assets/make/fashion_classifier.py --output assets/fashion-classifier --minutes 5

On one CPU core. It learns from the 60,000 training pictures; the 10,000 test pictures are measured once, at the end.
real.safetensors holds the mean and the covariance of the features of both sets.
"""

import argparse
import json
import math
import time
from pathlib import Path

import fashion
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor

from diffpref.demo.fashion import (
    FashionClassifier,
    classifier_features,
    fashion_frechet,
    load_classifier,
    load_real_features,
)
from diffpref.evaluate.statistics import frechet_distance

ARCHITECTURE = {"widths": (32, 48, 96), "features": 64, "classes": len(fashion.CLASSES)}
SHOES = (5, 7, 9)
BATCH = 128
RATE = 6e-3


def augment(x: Tensor, labels: Tensor) -> Tensor:
    """The batch moved by up to 2 pixels together, half of its pictures mirrored but for shoes, which all point left."""
    top, left = torch.randint(5, (2,)).tolist()
    x = F.pad(x, (2, 2, 2, 2), value=-1.0)[..., top : top + 28, left : left + 28]
    shoes = torch.isin(labels, torch.tensor(SHOES))
    flip = (torch.rand(len(x)) < 0.5) & ~shoes
    return torch.where(flip.view(-1, 1, 1, 1), x.flip(-1), x)


def train(classifier: FashionClassifier, pictures: Tensor, labels: Tensor, seconds: float) -> int:
    """Train on all pictures, in a new order every pass; returns the steps taken."""
    optimizer = torch.optim.AdamW(classifier.parameters(), lr=RATE, weight_decay=0.05)
    classifier.train().to(memory_format=torch.channels_last)
    start, step = time.monotonic(), 0
    order: list[Tensor] = []
    while (done := (time.monotonic() - start) / seconds) < 1:
        for group in optimizer.param_groups:
            group["lr"] = RATE * min(1, (step + 1) / 200) * (1 + math.cos(math.pi * done)) / 2
        order = order or list(torch.randperm(len(pictures)).split(BATCH))
        rows = order.pop()
        x = augment(pictures[rows], labels[rows])
        with torch.autocast("cpu", torch.bfloat16):
            logits = classifier(x.contiguous(memory_format=torch.channels_last))
        loss = F.cross_entropy(logits.float(), labels[rows], label_smoothing=0.05)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 200 == 0:
            print(f"{step:6d} {time.monotonic() - start:5.0f}s loss {loss.item():.3f}", flush=True)
        step += 1
    classifier.to(memory_format=torch.contiguous_format).eval()
    return step


def moments(x: Tensor) -> tuple[Tensor, Tensor]:
    return x.double().mean(0).float(), x.double().T.cov().float().contiguous()


@torch.no_grad()
def accuracy(classifier: FashionClassifier, pictures: Tensor, labels: Tensor) -> float:
    named = torch.cat([classifier(part).argmax(1) for part in pictures.split(500)])
    return round((named == labels).double().mean().item(), 4)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=5)
    args = parser.parse_args()

    torch.manual_seed(0)
    torch.set_num_threads(1)
    pictures, labels = fashion.load("train")
    unseen, unseen_labels = fashion.load("t10k")
    classifier = FashionClassifier(**ARCHITECTURE)
    print(f"{sum(p.numel() for p in classifier.parameters()) / 1e3:.0f} k weights", flush=True)
    steps = train(classifier, pictures, labels, args.minutes * 60)

    args.output.mkdir(parents=True, exist_ok=True)
    tensors = {k: v.half() if v.is_floating_point() else v for k, v in classifier.state_dict().items()}
    save_file({k: v.contiguous() for k, v in tensors.items()}, args.output / "classifier.safetensors")
    config = {"architecture": classifier.architecture, "classes": fashion.CLASSES, "steps": steps, "batch": BATCH}
    write = (args.output / "config.json").write_text
    write(json.dumps(config, indent=1) + "\n")

    # What is measured is the classifier as it is shipped, in float16.
    classifier = load_classifier(args.output)
    seen_features, features = classifier_features(classifier, pictures), classifier_features(classifier, unseen)
    (train_mean, train_covariance), (test_mean, test_covariance) = moments(seen_features), moments(features)
    save_file(
        {
            "train_mean": train_mean,
            "train_covariance": train_covariance,
            "test_mean": test_mean,
            "test_covariance": test_covariance,
        },
        args.output / "real.safetensors",
    )
    stored = load_real_features("test", args.output)
    few = torch.randperm(len(pictures), generator=torch.Generator().manual_seed(0))
    noise = 0.1 * torch.randn(unseen.shape, generator=torch.Generator().manual_seed(0))
    measured = {
        "accuracy": {
            "test": accuracy(classifier, unseen, unseen_labels),
            "train": accuracy(classifier, pictures, labels),
        },
        "frechet": {
            "train to test": frechet_distance(seen_features, features),
            "train to test, stored moments": frechet_distance(load_real_features("train", args.output), stored),
            "10000 training pictures to test": frechet_distance(seen_features[few[:10000]], features),
            "2000 training pictures to test": frechet_distance(seen_features[few[:2000]], features),
            "500 training pictures to test": frechet_distance(seen_features[few[:500]], features),
            "test pictures and noise of 0.1 to test": fashion_frechet(
                classifier, (unseen + noise).clamp(-1, 1), stored
            ),
            "test pictures, mirrored, to test": fashion_frechet(classifier, unseen.flip(-1), stored),
            "uniform noise to test": fashion_frechet(classifier, 2 * torch.rand(2000, 1, 28, 28) - 1, stored),
        },
    }
    write(json.dumps({**config, "measured": measured}, indent=1) + "\n")
    print(json.dumps(measured, indent=1))


if __name__ == "__main__":
    main()
