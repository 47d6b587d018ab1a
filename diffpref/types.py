"""The tensors that every method exchanges; axes: b prompts, k candidates, n = b * k, *chw the image or latent.

Annotations name the shapes; the tests check them at every call, an ordinary run does not.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Protocol, TypeAlias, cast, runtime_checkable

from jaxtyping import Float
from torch import Tensor

from diffpref.path import GaussianPath

Cond: TypeAlias = Mapping[str, Tensor]
"""What the network is conditioned on: named tensors whose first axis is b (or n, where it is said)."""


@runtime_checkable
class Backbone(Protocol):
    """A network on a path: it predicts a(t) x0 + b(t) eps from x_t, each sample at its own t."""

    @property
    def path(self) -> GaussianPath: ...

    def __call__(self, x_t: Float[Tensor, " n *chw"], t: Tensor, cond: Cond) -> Float[Tensor, " n *chw"]: ...


@dataclass(frozen=True)
class Candidates:
    """k images of each prompt and how good each is (higher is better): a pair, a ranked list, or real and fake.

    >>> Candidates(x0=torch.zeros(1, 2, 4, 8, 8), scores=torch.tensor([[1.0, 0.0]])).scores.argmax(1)
    tensor([0])
    """

    x0: Float[Tensor, "b k *chw"]
    scores: Float[Tensor, "b k"]
    cond: Cond = field(default_factory=dict[str, Tensor])


@dataclass(frozen=True)
class Probe:
    """Where on the path policy and reference are compared.

    All candidates of a prompt share t and weight; weight multiplies the squared error of the native prediction.

    >>> x_t = torch.zeros(1, 2, 4, 8, 8)
    >>> Probe(x_t, target=x_t, t=torch.tensor([0.5]), weight=torch.ones(1)).t
    tensor([0.5000])
    """

    x_t: Float[Tensor, "b k *chw"]
    target: Float[Tensor, "b k *chw"]
    t: Tensor
    weight: Float[Tensor, " b"]
    cond: Cond = field(default_factory=dict[str, Tensor])


@dataclass(frozen=True)
class Errors:
    """Weighted squared errors of both models, mean over elements, float32 or better.

    >>> Errors(policy=torch.tensor([[0.5, 1.0]]), reference=torch.tensor([[1.0, 1.0]])).log_ratio
    tensor([[0.2500, 0.0000]])
    """

    policy: Float[Tensor, "b k"]
    reference: Float[Tensor, "b k"]
    difference: Float[Tensor, "b k"] = cast(Tensor, None)
    """policy - reference: given where it was computed from the predictions, which loses no digits, else subtracted."""

    def __post_init__(self) -> None:
        if cast("Tensor | None", self.difference) is None:
            object.__setattr__(self, "difference", self.policy - self.reference)

    @property
    def log_ratio(self) -> Float[Tensor, "b k"]:
        """(reference - policy) / 2, in nats per element and unit weight: positive where the policy fits better.

        The 1/2 is that of the Gaussian log-density, so beta equals the official code's `beta_dpo`."""
        return (0 - self.difference) / 2  # not -difference, whose zero would be -0.0 in the logs


Loss: TypeAlias = Callable[[Errors, Tensor], Tensor]
"""(errors, scores "b k") -> loss "b": all that a step needs of an objective."""


@runtime_checkable
class Alarm(Protocol):
    """What a method watches its run for: a pure function of the last summary and of what it remembered."""

    def __call__(
        self, metrics: Mapping[str, float], remembered: Mapping[str, float]
    ) -> tuple[str | None, Mapping[str, float]]:
        """A text with its remedies, or None while all is well; and what to remember until the next summary.

        Args:
            metrics: the names of metrics.jsonl, such as "error/chosen/ratio".
            remembered: what the last call returned, empty at first; checkpoints keep it.
        """
        ...


@runtime_checkable
class Objective(Protocol):
    """What is done with the log-ratios: a frozen dataclass whose fields are the method's settings.

    The four attributes have no default anywhere: they say what a run needs to know of a method beside its loss."""

    candidates: ClassVar[str]
    """What a group holds: "pairs", "lists" (3 or more images), "chain_pairs" (two sampler steps) or "real_fake"."""
    scaling: ClassVar[str]
    """How rewards become scores: "none" (only their order counts), "min_max" (to [0, 1] over the data set) or
    "win_fraction" (the share of the other images that each beats)."""
    alarm: ClassVar[Alarm]
    """When a run of this method goes wrong."""

    @property
    def beta(self) -> float:
        """Inverse temperature: beta times a log-ratio is the reward in nats that the logs show; above 0."""
        ...

    def __call__(self, errors: Errors, scores: Float[Tensor, "b k"]) -> Float[Tensor, " b"]:
        """The loss of each group, in nats."""
        ...
