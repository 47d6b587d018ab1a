"""What one candidate looks like to a network, for counting without weights."""

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Shape:
    """The tensors of one candidate, without the batch axis; () is one number a candidate."""

    latent: tuple[int, ...]
    prompt: Mapping[str, tuple[int, ...]]
    """Of the prompt, by name."""
    added: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    """Of what the network is told beside the prompt, such as sizes."""

    @property
    def cond(self) -> dict[str, tuple[int, ...]]:
        """All that the network is conditioned on."""
        return {**self.prompt, **self.added}
