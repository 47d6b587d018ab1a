"""A vision-language model behind an OpenAI-compatible server as a reward: points for each image, or duels.

Axes: n images.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Annotated, Literal

import torch
from annotated_types import Ge, Gt, Le, Lt
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from diffpref.files.identity import sha256
from diffpref.rewards.judge_asking import Asker, Sampling, data_url
from diffpref.rewards.judge_client import ChatClient, Trouble, base_url
from diffpref.rewards.judge_published import TEMPLATES
from diffpref.rewards.judge_templates import MODES, Template, Urls
from diffpref.settings import bounds
from diffpref.settings.typed import nearest

_IMAGES_KEPT = 64
_FINITE = Lt(float("inf"))


class VlmJudge:
    """A connection to a judge."""

    def __init__(self, client: ChatClient, *, settings: "VlmJudgeSettings", served: str) -> None:
        self.settings = settings
        self.template = settings.resolved()
        sampling = settings.sampling()
        self._asker = Asker(
            client,
            sampling,
            retries=settings.retries,
            backoff=settings.backoff,
            concurrency=settings.concurrency,
        )
        jpeg = settings.image_format == "jpeg"
        self.provenance = {
            "scorer": "vlm_judge",
            "checkpoint": served,
            "model": settings.model,
            "endpoint": client.base,
            "template": settings.template if settings.template in TEMPLATES else "own",
            "template sha256": sha256(self.template.text),
            "unit": self.template.unit(),
            "preprocessing": f"jpeg, quality {settings.quality}" if jpeg else "png",
            "dtype": "the server's",
            "sampling": f"temperature {settings.temperature:g}, max_tokens {settings.max_tokens}, seed {settings.seed}",
        }

    @property
    def statistics(self) -> Mapping[str, int]:
        """Since loading: requests sent; retries, those of them that asked again; timeouts; parse_failures, replies that
        could not be read; unanswered, questions given up, whose scores are NaN; order_disagreements, duels that the
        judge decided otherwise when the two images changed places."""
        return self._asker.counts

    def score(self, images: Sequence[Image.Image], prompts: Sequence[str]) -> Float[Tensor, " n"]:
        """Points, or the share of its duels that an image wins against the others of its prompt; NaN where the judge
        gave no answer that can be read, in duels to any of the image's.

        Every duel is fought in both orders, so that k images of a prompt cost k (k - 1) requests. The share is phi of
        Syn-Pic (arXiv 2410.18013) with a judge's duels instead of scores, and Pref-GRPO's reward (arXiv 2508.20751).

        Raises:
            ValueError: a question that the server refuses, or in duels a prompt with one image only.
            ConnectionError: the server is not there.
        """
        _same_length(images, prompts)
        return self.template.scores(self._asker, self._urls(images), prompts)

    def compare(
        self, first: Sequence[Image.Image], second: Sequence[Image.Image], prompts: Sequence[str]
    ) -> Float[Tensor, " n"]:
        """1 where the first image is better in both orders, 0 where the second is, 0.5 where the orders disagree or
        agree on a tie, NaN where the judge gave no answer that can be read.

        Raises:
            ValueError: a judge of points, or as `score`.
            ConnectionError: the server is not there.
        """
        _same_length(first, prompts)
        _same_length(second, prompts)
        return self.template.compare(self._asker, self._urls(first), self._urls(second), prompts)

    def pair_logit(self, a: Float[Tensor, " n"], b: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
        """The difference of points, read as nats though no one has fitted their scale.

        Raises:
            ValueError: of duels, whose shares would be infinitely far apart where one image wins them all.
        """
        return self.template.pair_logit(a, b)

    def _urls(self, images: Sequence[Image.Image]) -> Urls:
        """The images' data URLs, made when they are asked for; the last ones are kept."""
        kind, quality = self.settings.image_format, self.settings.quality
        return lru_cache(_IMAGES_KEPT)(lambda place: data_url(images[place], kind, quality=quality))


@dataclass(frozen=True)
class VlmJudgeSettings:
    """Which judge, and what it is asked."""

    endpoint: str
    """The server's address, such as "http://localhost:8000"; a /v1 at its end changes nothing."""
    model: str
    """A name that the server lists."""
    template: str = "unified_reward_points"
    """A name of `judge_published.TEMPLATES`, or your own text with {prompt} where the prompt goes."""
    mode: Literal["points", "pairs"] | None = None
    """Of your own text. A reply about pairs is a JSON object with "winner": "Image 1", "Image 2" or "tie", or the
    sentence "Image 1 is better." and so on, unless it has `dimensions`."""
    dimensions: tuple[str, ...] = ()
    """Of your own text, the names that the reply gives numbers to, as "NAME: 3.5" each on its own; about pairs "NAME:",
    then "Image 1: 0.4" and "Image 2: 0.6"."""
    dimension: str = ""
    """The only one that counts; "" for their mean."""
    api_key_env: str = ""
    """The environment variable that holds the key; "" for none. The key is kept nowhere else."""
    timeout: Annotated[float, Gt(0), _FINITE] = 180.0
    """Seconds without a byte from the server, after which it is asked again."""
    retries: Annotated[int, Ge(0)] = 4
    """Of a request that failed and of a reply that could not be read, together."""
    backoff: Annotated[float, Ge(0), _FINITE] = 1.0
    """Seconds before the first retry of a failed request, doubled each time, unless the server says how long."""
    concurrency: Annotated[int, Ge(1)] = 16
    """Questions at once."""
    image_format: Literal["png", "jpeg"] = "png"
    """PNG is what the image is; UnifiedReward's own scripts send JPEG of quality 95."""
    quality: Annotated[int, Ge(1), Le(100)] = 95
    """Of JPEG."""
    temperature: Annotated[float, Ge(0), _FINITE] = 0.0
    """Of the server's sampling; 0 is greedy."""
    retry_temperature: Annotated[float, Ge(0), _FINITE] = 0.5
    """After a reply that could not be read, which greedy decoding would repeat."""
    max_tokens: Annotated[int, Ge(1)] = 4096
    """Of a reply; Flex writes a long one."""
    seed: int = 0
    """Of the server's sampling."""

    def __post_init__(self) -> None:
        base_url(self.endpoint)
        bounds.check(self)
        self.resolved()

    def sampling(self) -> Sampling:
        """How the server draws a reply."""
        return Sampling(
            model=self.model,
            temperature=self.temperature,
            retry_temperature=self.retry_temperature,
            max_tokens=self.max_tokens,
            seed=self.seed,
        )

    def resolved(self) -> Template:
        """The named template, or the user's own.

        Raises:
            ValueError: no such name, a text without {prompt}, mode or dimensions, or a dimension that it does not have.
        """
        kind = None if self.mode is None else MODES[self.mode]
        if self.template in TEMPLATES:
            template = TEMPLATES[self.template]
            if self.dimensions or kind not in (None, type(template)):
                raise ValueError(f"{self.template} is a template of {template.mode} with dimensions of its own.")
            return replace(template, dimension=self.dimension)
        if "{prompt}" not in self.template:
            rule = f"template must be one of {list(TEMPLATES)} or a text with {{prompt}} in it"
            raise ValueError(f"{rule}, got {self.template!r}.{nearest(self.template, list(TEMPLATES))}")
        if kind is None:
            raise ValueError("a template of your own needs mode: pairs, or mode: points and dimensions: [NAME, ...].")
        return kind(self.template, self.dimensions, dimension=self.dimension)

    def load(self, device: torch.device) -> VlmJudge:
        """A judge that answers; the device is the server's affair.

        Raises:
            ValueError: no key, no server, or a server without the model.
        """
        client = ChatClient(self.endpoint, key=_key(self.api_key_env), timeout=self.timeout)
        try:
            served = client.models()
        except Trouble as problem:
            rule = "start the server, or wait until it has loaded its model"
            raise ValueError(f"endpoint {client.base} does not answer ({problem.reason}): {rule}.") from None
        if self.model not in served:
            raise ValueError(f"model must be one of {sorted(served)}, which {client.base} serves, got {self.model!r}.")
        return VlmJudge(client, settings=self, served=served[self.model])


def _key(variable: str) -> str:
    key = os.environ.get(variable, "").strip() if variable else ""
    if variable and not (key and key.isascii() and key.isprintable()):
        raise ValueError(f"api_key_env: the environment variable {variable!r} holds no key; set it.")
    return key


def _same_length(images: Sequence[Image.Image], prompts: Sequence[str]) -> None:
    if len(images) != len(prompts):
        raise ValueError(f"a judge needs one prompt per image, got {len(prompts)} for {len(images)} images.")
