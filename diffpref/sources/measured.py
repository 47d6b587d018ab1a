"""Which step of a round of self-play was best: the network is measured on fixed samples, and the best weights kept."""

import json
import math
from collections.abc import Callable
from pathlib import Path

import torch

from diffpref.data.rows import Preferences
from diffpref.files import atomic
from diffpref.run.randomness import generator
from diffpref.sources.fakes import SAMPLE_BATCH
from diffpref.training.rounds import Basis


class Measured:
    """Measures the network at every call, and keeps the best weights in folder/best.

    Args:
        name: of the measure, for people.
        measure: (images, prompts) -> a number, where lower is better.
        count: samples of each measurement.
    """

    def __init__(
        self, basis: Basis, real: Preferences, name: str, measure: Callable[..., float], count: int, folder: Path
    ) -> None:
        self.basis, self.name, self.measure, self.folder = basis, name, measure, folder
        order = torch.randperm(len(real), generator=generator(0, "measure")).tolist()
        self.prompts = [real[order[place % len(real)]].prompt for place in range(count)]
        kept = folder / "measures.json"
        self.measures: dict[str, float] = json.loads(kept.read_text()) if kept.is_file() else {}

    def __call__(self, step: int, network: torch.nn.Module) -> None:
        """Draw, measure, and keep the weights if no earlier step was better."""
        if str(step) in self.measures:
            return
        family, device = self.basis.family, next(network.parameters()).device
        encoder = family.load_encoder(device)
        unique = list(dict.fromkeys(self.prompts))
        encoded, empty = encoder.encode_prompts(unique), family.empty_prompt(encoder)
        del encoder
        rows = torch.tensor([unique.index(prompt) for prompt in self.prompts])
        images = family.load_decoder(network, device).sample(
            {name: value[rows.to(value.device)] for name, value in encoded.items()},
            empty,
            resolution=self.basis.data.resolution,
            seeds=[generator(0, "measure", place).initial_seed() for place in range(len(rows))],
            steps=self.basis.validation.num_inference_steps,
            guidance_scale=1.0,
            batch_size=SAMPLE_BATCH,
        )
        value = float(self.measure(images, self.prompts))
        better = value < min(self.measures.values(), default=math.inf)
        if better:
            (self.folder / "best").mkdir(parents=True, exist_ok=True)
            self.basis.adapter.save(network, family, self.folder / "best")
        self.measures[str(step)] = value
        atomic.write_json(self.folder / "measures.json", self.measures)
        self.basis.say(f"step {step}: {self.name} {value:.4f}{' (best)' if better else ''}")
