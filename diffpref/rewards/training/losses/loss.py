"""What every loss of a reward's training answers."""

from typing import Protocol, runtime_checkable

from jaxtyping import Float
from torch import Tensor


@runtime_checkable
class Loss(Protocol):
    """What is minimised. A member is a frozen dataclass; its fields are the settings that only it has."""

    def share_of_step(
        self,
        scores: Float[Tensor, "n 2"],
        labels: Float[Tensor, "n 2"],
        *,
        weights: Float[Tensor, " n"],
        total: float,
        processes: int,
    ) -> Float[Tensor, ""]:
        """What these pairs add to the step's loss, in nats; its gradient is summed over a process's batches, and then
        averaged over the processes, as data parallelism does.

        Args:
            scores: exp(logit_scale) cos(image, prompt).
            labels: the probability that each image is the preferred one.
            weights: 1 / how many examples the pair's prompt has in the data.
            total: the sum of the weights of all the step's pairs, of every process.
            processes: how many processes share the step."""
        ...

    def limit_scale(self, logit_scale: Tensor) -> None:
        """Put logit_scale, the logarithm of the cosine's factor, back into its bounds after a step, in place."""
        ...
