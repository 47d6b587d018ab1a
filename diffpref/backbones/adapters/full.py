"""All weights of the network are trained; the reference has weights of its own."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

import torch
from torch import Tensor

from diffpref.backbones import Family, Kind
from diffpref.backbones.adapters.adapter import Adapter, Words
from diffpref.backbones.adapters.reference import frozen_copy
from diffpref.backbones.adapters.streamed import StreamedReference
from diffpref.files import atomic
from diffpref.types import Backbone

SHARD = "10GB"
"""Networks above this are saved in several files of it, with an index."""


@dataclass(frozen=True)
class Resident:
    """The reference beside the policy, as a frozen copy on the device."""

    in_the_policys_place: ClassVar[bool] = False

    def copy(self, network: torch.nn.Module, precision: torch.dtype) -> torch.nn.Module | None:
        return frozen_copy(network, precision)

    def bytes(self, parameters: int, precision: torch.dtype) -> int:
        return parameters * precision.itemsize

    def streamed(self, network: torch.nn.Module) -> StreamedReference | None:
        return None


@dataclass(frozen=True)
class OnTheHost:
    """The reference in the machine's memory; its weights take the policy's place once in each step."""

    in_the_policys_place: ClassVar[bool] = True

    def copy(self, network: torch.nn.Module, precision: torch.dtype) -> torch.nn.Module | None:
        return None

    def bytes(self, parameters: int, precision: torch.dtype) -> int:
        return 0

    def streamed(self, network: torch.nn.Module) -> StreamedReference | None:
        return StreamedReference(network)


MEMORY: Mapping[str, Resident | OnTheHost] = {"resident": Resident(), "streamed": OnTheHost()}
"""The choices of `reference_memory`."""


@dataclass(frozen=True)
class Full:
    """All weights of the network, in float32: an update at a usual rate is below half a step of bfloat16."""

    added: ClassVar[bool] = False
    autocast: ClassVar[bool] = True
    words: ClassVar[Words] = Words("finetune", "A fine-tune of", "")

    reference_memory: Literal["resident", "streamed"] = "resident"
    """Keep the reference's weights beside the policy's, or in the machine's memory, from where they take the policy's
    place once in each step."""

    @property
    def starts_equal(self) -> bool:
        return True

    def identity(self) -> Mapping[str, object]:
        return {}

    def counted(self) -> Adapter:
        return Full()

    def check(self, family: Kind, name: str = "this backbone") -> None:
        """Every backbone can be trained as a whole."""

    def check_start(self, family: Family) -> Sequence[str]:
        return ()

    def check_policy_inverts(self) -> None:
        if MEMORY[self.reference_memory].in_the_policys_place:
            raise ValueError(
                "reference_memory: streamed has the reference's weights in the policy's place while a batch is "
                "inverted, so that the policy cannot invert it: set inversion_model: reference."
            )

    def base_dtype(self, precision: torch.dtype) -> torch.dtype:
        return torch.float32

    def copy(self, network: torch.nn.Module, precision: torch.dtype) -> torch.nn.Module | None:
        return MEMORY[self.reference_memory].copy(network, precision)

    def reference_bytes(self, parameters: int, precision: torch.dtype) -> int:
        return MEMORY[self.reference_memory].bytes(parameters, precision)

    def attach(self, network: torch.nn.Module, family: Kind, *, seed: int) -> Sequence[str]:
        return ()

    def reference(self, model: Backbone, network: torch.nn.Module) -> Backbone:
        return model

    def streamed(self, network: torch.nn.Module) -> StreamedReference | None:
        return MEMORY[self.reference_memory].streamed(network)

    def state(self, network: torch.nn.Module) -> dict[str, Tensor]:
        return network.state_dict()

    def load(self, network: torch.nn.Module, state: Mapping[str, Tensor]) -> None:
        network.load_state_dict(state)

    def save(self, network: torch.nn.Module, family: Family, folder: Path) -> None:
        with atomic.new_folder(folder / family.component) as new:
            network.save_pretrained(new, max_shard_size=SHARD)  # type: ignore[operator]

    def continued(self, output: Path, base: Path | None) -> tuple[Adapter, Path | None]:
        return self, output
