"""Adapters: what of a network is trained. A member is one file and one line in `ADAPTERS`."""

from collections.abc import Mapping

from diffpref.backbones.adapters.adapter import Adapter, Streamed, Words
from diffpref.backbones.adapters.full import Full
from diffpref.backbones.adapters.lora import LoRA
from diffpref.backbones.adapters.trained import trainable

ADAPTERS: Mapping[str, type] = {"lora": LoRA, "full": Full}
"""The choices of `adapter:` by name."""

__all__ = ["ADAPTERS", "Adapter", "Full", "LoRA", "Streamed", "Words", "trainable"]
