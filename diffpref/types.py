"""The tensors that every method exchanges; axes: b prompts, k candidates, n = b * k, *chw the picture or latent.

Annotations name the shapes; the tests check them at every call, an ordinary run does not.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol, TypeAlias, cast, runtime_checkable

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
    """k pictures of each prompt and how good each is (higher is better): a pair, a ranked list, or real and fake."""

    x0: Float[Tensor, "b k *chw"]
    scores: Float[Tensor, "b k"]
    cond: Cond = field(default_factory=dict)


@dataclass(frozen=True)
class Probe:
    """Where on the path policy and reference are compared.

    All candidates of a prompt share t and weight; weight multiplies the squared error of the native prediction."""

    x_t: Float[Tensor, "b k *chw"]
    target: Float[Tensor, "b k *chw"]
    t: Tensor
    weight: Float[Tensor, " b"]
    cond: Cond = field(default_factory=dict)


@dataclass(frozen=True)
class Errors:
    """Weighted squared errors of both models, mean over elements, float32 or better."""

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


Objective: TypeAlias = Callable[[Errors, Tensor], Tensor]
"""(errors, scores "b k") -> loss "b"; a frozen dataclass with `__call__`."""
