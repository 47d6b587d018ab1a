"""The losses of PickScore and HPSv2 against torch.distributions, closed forms, plain loops and finite differences."""

import math

import pytest
import torch
from torch import Tensor
from torch.distributions import Categorical, kl_divergence

from diffpref.rewards.training.labels import OrderLabels, ScoreLabels, labels_of
from diffpref.rewards.training.losses import LOSSES, PickScoreLoss, cross_entropy, entropy

LABELS = torch.tensor([[1, 0], [0, 1], [0.5, 0.5], [0.8, 0.2], [0.35, 0.65], [0.5, 0.5]], dtype=torch.float64)


def some_scores(seed: int = 0, scale: float = 3) -> Tensor:
    return scale * torch.randn(len(LABELS), 2, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_the_excess_is_the_divergence_of_two_distributions() -> None:
    scores = some_scores()
    said, predicted = Categorical(probs=LABELS), Categorical(logits=scores)
    expected = -(said.probs * torch.stack([predicted.log_prob(torch.tensor(k)) for k in (0, 1)], 1)).sum(1)
    torch.testing.assert_close(cross_entropy(scores, LABELS), expected)
    torch.testing.assert_close(entropy(LABELS)[2:], said.entropy()[2:])
    excess = cross_entropy(scores, LABELS) - entropy(LABELS)
    torch.testing.assert_close(excess[2:], kl_divergence(said, predicted)[2:])


@pytest.mark.parametrize("margin", [-1e4, -3.0, 0.0, 0.1, 1e4])
def test_closed_forms(margin: float) -> None:
    """Bradley-Terry: log(1 + exp(-d)) for a decided pair; log cosh(d / 2) beyond log 2 for a tie."""
    scores = torch.tensor([[margin + 7, 7.0]] * 3, dtype=torch.float64)
    labels = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.5, 0.5]], dtype=torch.float64)
    excess = cross_entropy(scores, labels) - entropy(labels)
    bend = math.log1p(math.exp(-abs(margin)))
    tie = abs(margin) / 2 + bend - math.log(2)
    expected = [max(-margin, 0) + bend, max(margin, 0) + bend]
    torch.testing.assert_close(excess, torch.tensor([*expected, tie], dtype=torch.float64), atol=1e-12, rtol=1e-12)


def published(loss: str, scores: list[list[float]], labels: list[list[float]], counts: list[int]) -> float:
    """The published losses in plain numbers, one pair after the other."""
    total = 0.0
    for (a, b), (y0, y1), count in zip(scores, labels, counts, strict=True):
        nats = -y0 * math.log(1 / (1 + math.exp(b - a))) - y1 * math.log(1 / (1 + math.exp(a - b)))
        if loss == "pickscore":
            nats += math.log(0.5) if y0 == y1 else 0.0
            nats *= (1 / count) / sum(1 / c for c in counts)
        total += nats
    return total


@pytest.mark.parametrize("loss", ["pickscore", "hps"])
def test_the_step_of_one_process_is_the_published_loss(loss: str) -> None:
    labels = LABELS[[0, 1, 2, 5]]
    scores, counts = some_scores()[[0, 1, 2, 5]], [1, 3, 3, 7]
    weights = 1 / torch.tensor(counts, dtype=torch.float64)
    found = LOSSES[loss]().share_of_step(scores, labels, weights=weights, total=weights.sum().item(), processes=1)
    assert found.item() == pytest.approx(published(loss, scores.tolist(), labels.tolist(), counts), rel=1e-12)


@pytest.mark.parametrize("loss", ["pickscore", "hps"])
def test_gradients_averaged_over_processes(loss: str) -> None:
    """Two processes of two batches each: what data parallelism averages is the whole batch's gradient for PickScore,
    and for HPSv2, whose every process sums its own pairs, half of the sum's."""
    scores = some_scores(1).requires_grad_()
    weights = torch.tensor([1, 1 / 2, 1 / 3, 1 / 3, 1 / 2, 1 / 3], dtype=torch.float64)
    total = weights.sum().item()

    def part(rows: list[int], processes: int) -> Tensor:
        member = LOSSES[loss]()
        return member.share_of_step(scores[rows], LABELS[rows], weights=weights[rows], total=total, processes=processes)

    (whole,) = torch.autograd.grad(part([0, 1, 2, 3, 4, 5], 1), scores)
    of_first, of_second = part([0, 4], 2) + part([2], 2), part([5], 2) + part([1, 3], 2)
    (averaged,) = torch.autograd.grad((of_first + of_second) / 2, scores)
    torch.testing.assert_close(averaged, whole if loss == "pickscore" else whole / 2)


@pytest.mark.parametrize("loss", ["pickscore", "hps"])
def test_gradients_are_those_of_finite_differences(loss: str) -> None:
    weights = torch.tensor([1, 0.5, 0.5, 1, 0.25, 1], dtype=torch.float64)

    def step(scores: Tensor) -> Tensor:
        return LOSSES[loss]().share_of_step(scores, LABELS, weights=weights, total=4.25, processes=2)

    assert torch.autograd.gradcheck(step, some_scores(2).requires_grad_())


def test_nothing_moves_where_the_scores_say_what_people_say() -> None:
    scores = LABELS.clamp(min=1e-300).log().requires_grad_()
    loss = PickScoreLoss().share_of_step(
        scores, LABELS, weights=torch.ones(6, dtype=torch.float64), total=6.0, processes=1
    )
    loss.backward()
    assert abs(loss.item()) < 1e-12 and scores.grad is not None and scores.grad.abs().max() < 1e-12


def test_labels_by_order_and_by_scores() -> None:
    scores = [(3.0, -1.0), (0.2, 0.8), (5.0, 5.0)]
    assert labels_of(scores, OrderLabels(), "here").tolist() == [[1, 0], [0, 1], [0.5, 0.5]]
    shares = [(0.25, 0.75), (0.5, 0.5)]
    assert labels_of(shares, ScoreLabels(), "here").tolist() == [[0.25, 0.75], [0.5, 0.5]]
    with pytest.raises(ValueError, match=r"here: labels: scores needs two probabilities .* got \(3.0, -1.0\)"):
        labels_of(scores, ScoreLabels(), "here")
    with pytest.raises(ValueError, match="here: all 2 pairs are ties"):
        labels_of([(1.0, 1.0), (0.0, 0.0)], OrderLabels(), "here")
