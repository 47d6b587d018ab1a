"""Best of n: a pipeline that draws several images of each prompt and returns the one that a reward likes most."""

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import DiffusionPipeline
from diffusers.utils import BaseOutput
from PIL import Image

from diffpref.pipelines.loaded import LOADED, component_of
from diffpref.rewards import CheckedReward, find_reward

PER_PROMPT = ("prompt_2", "prompt_3", "negative_prompt", "negative_prompt_2", "negative_prompt_3")
OURS = ("generator", "output_type", "return_dict", "num_images_per_prompt", "latents", "prompt_embeds")
"""Arguments of a pipeline's call that are set here, or would give every image the same noise or no prompt."""

OWN = ("pipe", "n", "batch_size", "reward", "to", "_draw")
"""What of a `BestOf` is not the inner pipeline's."""


@dataclass(frozen=True)
class Drawn:
    """One image, its score by the reward, and the seed that draws it again:
    `pipe(prompt, generator=torch.Generator().manual_seed(seed))`."""

    image: Image.Image
    score: float
    seed: int


@dataclass
class BestOfOutput(BaseOutput):
    """What `BestOf` returns."""

    images: list[Image.Image]
    """The best image of each prompt, as the pipeline alone would return one."""
    ranked: list[list[Drawn]]
    """All images of each prompt, the best first."""


class BestOf(DiffusionPipeline):
    """A pipeline in a pipeline's place: n images of each prompt from n seeds, the best first.

    All that is not its own is the inner pipeline's: `scheduler`, `load_lora_weights`, `to`, `set_adapters`.

    >>> best = BestOf(pipe, reward="pickscore", n=8)  # doctest: +SKIP
    >>> best("a fox in the snow").images[0].save("fox.png")  # doctest: +SKIP

    Args:
        pipe: a diffusers pipeline that takes prompts.
        reward: a name, a YAML file or an address as `diffpref.find_reward` takes them, or such a reward. Of "implicit"
            the run is that of `load`, where the settings name none.
        n: images of each prompt.
        batch_size: images that are drawn at once.
        settings: fields of the reward's settings.

    Raises:
        ValueError: no such reward, a pipeline without prompts, or n below 1.
    """

    def __init__(
        self,
        pipe: Any,
        reward: str | CheckedReward = "pickscore",
        n: int = 8,
        *,
        batch_size: int = 1,
        settings: Mapping[str, Any] | None = None,
    ) -> None:
        if n < 1 or batch_size < 1:
            raise ValueError(f"n and batch_size must be 1 or above, got {n} and {batch_size}.")
        if "prompt" not in inspect.signature(type(pipe).__call__).parameters:
            raise ValueError(f"{type(pipe).__name__} takes no prompt, which a reward needs: give a text pipeline.")
        given = dict(settings or {})
        network = getattr(pipe, component_of(pipe))
        if reward == "implicit" and "run" not in given and network in LOADED:
            given["run"] = str(LOADED[network].run)
        self.pipe, self.n, self.batch_size = pipe, n, batch_size
        self.reward = find_reward(reward, pipe.device, settings=given) if isinstance(reward, str) else reward

    def __getattribute__(self, name: str) -> Any:
        # The class's own methods too: this object has no networks of its own for them to work on.
        if name in OWN or name.startswith("__"):
            return object.__getattribute__(self, name)
        return getattr(object.__getattribute__(self, "pipe"), name)

    def __setattr__(self, name: str, value: Any) -> None:
        if name in OWN:
            object.__setattr__(self, name, value)
        else:
            setattr(self.pipe, name, value)

    def to(self, *args: Any, **kwargs: Any) -> "BestOf":
        """Move the inner pipeline."""
        self.pipe.to(*args, **kwargs)
        return self

    def __call__(
        self,
        prompt: str | Sequence[str],
        *,
        generator: torch.Generator | None = None,
        seeds: Sequence[int] | None = None,
        **options: Any,
    ) -> BestOfOutput:
        """The best image of each prompt, and all of them with scores and seeds.

        Args:
            generator: the seeds are drawn from it; None draws new ones.
            seeds: n seeds, used for every prompt, in place of the generator.
            options: of the pipeline's call; a second or a negative prompt may be a list, one for each prompt.

        Raises:
            ValueError: an option that this call sets itself, not n seeds, or a list that is not one for each prompt.
        """
        prompts = [prompt] if isinstance(prompt, str) else list(prompt)
        for name in OURS:
            if name in options:
                raise ValueError(f"BestOf draws images of its own seeds and scores them: leave {name} out.")
        if seeds is not None and len(seeds) != self.n:
            raise ValueError(f"seeds must be {self.n} numbers, one for each image of a prompt, got {len(seeds)}.")
        ranked = []
        for place, one in enumerate(prompts):
            own = {name: _own(name, value, place, len(prompts)) for name, value in options.items()}
            drawn = seeds if seeds is not None else torch.randint(2**31, (self.n,), generator=generator).tolist()
            images = self._draw(one, drawn, own)
            scores = self.reward(images, [one] * len(images)).tolist()
            rows = [Drawn(image, score, seed) for image, score, seed in zip(images, scores, drawn, strict=True)]
            ranked.append(sorted(rows, key=lambda row: -row.score))
        return BestOfOutput(images=[rows[0].image for rows in ranked], ranked=ranked)

    def _draw(self, prompt: str, seeds: Sequence[int], options: Mapping[str, Any]) -> list[Image.Image]:
        images: list[Image.Image] = []
        for first in range(0, len(seeds), self.batch_size):
            part = seeds[first : first + self.batch_size]
            generators = [torch.Generator("cpu").manual_seed(seed) for seed in part]
            images += self.pipe(
                prompt=prompt, num_images_per_prompt=len(part), generator=generators, output_type="pil", **options
            ).images
        return images


def _own(name: str, value: Any, place: int, count: int) -> Any:
    """One prompt's value of an option."""
    if name not in PER_PROMPT or not isinstance(value, (list, tuple)):
        return value
    if len(value) != count:
        raise ValueError(f"{name} must be one text, or one for each of the {count} prompts, got {len(value)}.")
    return value[place]
