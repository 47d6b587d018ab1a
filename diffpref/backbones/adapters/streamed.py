"""The reference of full fine-tuning without a second copy on the device: its weights come in once for each block.

The network's own memory holds the policy's weights or the reference's; the others wait on the host. A window costs one
copy of the weights out and two in, whatever it holds.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor


class StreamedReference:
    """The reference's weights on the host, and the network whose place they take while `loaded` is open.

    Made before the first update: the network's weights at that time are the reference's. In float32 where a frozen copy
    would be in the precision of the forward pass, and in the same training mode."""

    def __init__(self, network: torch.nn.Module) -> None:
        self.network = network
        self.weights = list(network.parameters())
        self.cuda = all(p.device.type == "cuda" for p in self.weights)
        self.reference = [self._host(p) for p in self.weights]
        self.policy = [self._host(p) for p in self.weights]
        # One for each direction: a GPU copies out and in at the same time.
        self.streams = (torch.cuda.Stream(), torch.cuda.Stream()) if self.cuda else None

    def _host(self, parameter: Tensor) -> Tensor:
        copy = torch.empty(parameter.shape, dtype=parameter.dtype, pin_memory=self.cuda)
        return copy.copy_(parameter.detach())

    @contextmanager
    def loaded(self) -> Iterator[None]:
        """Inside, the network is the reference; afterwards the policy again, bit for bit."""
        self._copy(out_to=self.policy, in_from=self.reference)
        try:
            yield
        finally:
            self._copy(out_to=None, in_from=self.policy)

    @torch.no_grad()
    def _copy(self, *, out_to: Sequence[Tensor] | None, in_from: Sequence[Tensor]) -> None:
        """Each weight out, where asked, and then the new one in."""
        if self.streams is None:
            for place, parameter in enumerate(self.weights):
                if out_to is not None:
                    out_to[place].copy_(parameter)
                parameter.copy_(in_from[place])
            return
        outward, inward = self.streams
        current = torch.cuda.current_stream()
        outward.wait_stream(current)
        inward.wait_stream(current)
        for place, parameter in enumerate(self.weights):
            if out_to is not None:
                with torch.cuda.stream(outward):
                    out_to[place].copy_(parameter, non_blocking=True)
                    gone = outward.record_event()
                inward.wait_event(gone)
            with torch.cuda.stream(inward):
                parameter.copy_(in_from[place], non_blocking=True)
        # `inward` has waited for every copy out, so that what comes next may also overwrite the host's buffers.
        current.wait_stream(inward)
