"""What of a CLIP is trained. A member is one file and one line in `TUNINGS`."""

from collections.abc import Mapping

from diffpref.rewards.training.tunings.full import FullTuning
from diffpref.rewards.training.tunings.lora import LoRATuning
from diffpref.rewards.training.tunings.tuning import Tuning

TUNINGS: Mapping[str, type] = {"lora": LoRATuning, "full": FullTuning}
"""The choices of `adapter:` by name."""

__all__ = ["TUNINGS", "FullTuning", "LoRATuning", "Tuning"]
