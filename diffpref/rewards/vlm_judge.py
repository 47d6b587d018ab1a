"""A vision-language model behind an OpenAI-compatible server as a reward: points for each picture, or duels.

Axes: n pictures.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import combinations
from typing import Literal

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from diffpref.files.identity import sha256
from diffpref.rewards.judge_asking import Asker, data_url
from diffpref.rewards.judge_client import ChatClient, Trouble, base_url
from diffpref.rewards.judge_parsing import TEMPLATES, Mode, Template
from diffpref.settings.typed import nearest

_PICTURES_KEPT = 64


class VlmJudge:
    """A connection to a judge."""

    def __init__(self, client: ChatClient, *, settings: "VlmJudgeSettings", served: str) -> None:
        self.settings = settings
        self.template = settings.resolved()
        self._asker = Asker(client, settings)
        counted = settings.dimension or "mean of " + ", ".join(self.template.dimensions)
        jpeg = settings.image_format == "jpeg"
        self.provenance = {
            "model": settings.model,
            "served": served,
            "endpoint": client.base,
            "template": settings.template if settings.template in TEMPLATES else "own",
            "template sha256": sha256(self.template.text),
            "unit": f"points: {counted}" if self.template.mode == "points" else "share of duels won, in [0, 1]",
            "pictures": f"jpeg, quality {settings.quality}" if jpeg else "png",
            "dtype": "the server's",
            "sampling": f"temperature {settings.temperature:g}, max_tokens {settings.max_tokens}, seed {settings.seed}",
        }

    @property
    def statistics(self) -> Mapping[str, int]:
        """Since loading: requests sent; retries, those of them that asked again; timeouts; parse_failures, replies that
        could not be read; unanswered, questions given up, whose scores are NaN; order_disagreements, duels that the
        judge decided otherwise when the two pictures changed places."""
        return self._asker.counts

    def score(self, images: Sequence[Image.Image], prompts: Sequence[str]) -> Float[Tensor, " n"]:
        """Points, or the share of its duels that a picture wins against the others of its prompt; NaN where the judge
        gave no answer that can be read, in duels to any of the picture's.

        Every duel is fought in both orders, so that k pictures of a prompt cost k (k - 1) requests. The share is phi of
        Syn-Pic (arXiv 2410.18013) with a judge's duels instead of scores, and Pref-GRPO's reward (arXiv 2508.20751).

        Raises:
            ValueError: a question that the server refuses, or in duels a prompt with one picture only.
            ConnectionError: the server is not there.
        """
        _same_length(images, prompts)
        url = lru_cache(_PICTURES_KEPT)(lambda place: self._url(images[place]))
        if self.template.mode == "points":
            places = range(len(images))
            return torch.tensor(self._asker.in_order(lambda place: self._points(url(place), prompts[place]), places))
        groups: dict[str, list[int]] = {}
        for place, prompt in enumerate(prompts):
            groups.setdefault(prompt, []).append(place)
        for prompt, members in groups.items():
            if len(members) < 2:
                raise ValueError(
                    f"a judge of pairs needs two pictures of a prompt or more in one call, got one of {prompt!r:.80}."
                )
        duels = [pair for members in groups.values() for pair in combinations(members, 2)]
        wins = self._asker.in_order(lambda pair: self._duel(url(pair[0]), url(pair[1]), prompts[pair[0]]), duels)
        total = torch.zeros(len(images), dtype=torch.float64)
        for (first, second), won in zip(duels, wins, strict=True):
            total[first] += won
            total[second] += 1 - won
        return (total / torch.tensor([len(groups[prompt]) - 1.0 for prompt in prompts])).float()

    def compare(
        self, first: Sequence[Image.Image], second: Sequence[Image.Image], prompts: Sequence[str]
    ) -> Float[Tensor, " n"]:
        """1 where the first picture is better in both orders, 0 where the second is, 0.5 where the orders disagree or
        agree on a tie, NaN where the judge gave no answer that can be read.

        Raises:
            ValueError: a judge of points, or as `score`.
            ConnectionError: the server is not there.
        """
        if self.template.mode != "pairs":
            raise ValueError("compare needs a judge of pairs: name a template of pairs, or compare the scores.")
        _same_length(first, prompts)
        _same_length(second, prompts)
        pairs = list(zip(first, second, prompts, strict=True))
        return torch.tensor(self._asker.in_order(lambda p: self._duel(self._url(p[0]), self._url(p[1]), p[2]), pairs))

    def pair_logit(self, a: Float[Tensor, " n"], b: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
        """The difference of points, read as nats though no one has fitted their scale.

        Raises:
            ValueError: of duels, whose shares would be infinitely far apart where one picture wins them all.
        """
        if self.template.mode == "pairs":
            raise ValueError("shares of duels have no pair_logit: use them as scores, or compare two pictures.")
        return a - b

    def _url(self, image: Image.Image) -> str:
        return data_url(image, self.settings.image_format, quality=self.settings.quality)

    def _points(self, url: str, prompt: str) -> float:
        points = self._asker.ask([url], self.template.question(prompt), read=self.template.points)
        if points is None:
            return float("nan")
        chosen = [points[self.settings.dimension]] if self.settings.dimension else list(points.values())
        return sum(chosen) / len(chosen)

    def _duel(self, first: str, second: str, prompt: str) -> float:
        """Whether the first wins: 1, 0.5 or 0, or NaN."""

        def read(reply: str) -> float | None:
            return self.template.first_is_better(reply, self.settings.dimension)

        question = self.template.question(prompt)
        forth = self._asker.ask([first, second], question, read=read)
        back = self._asker.ask([second, first], question, read=read)
        if forth is None or back is None:
            return float("nan")
        if forth == 1 - back:
            return forth
        self._asker.count("order_disagreements")
        return 0.5


@dataclass(frozen=True)
class VlmJudgeSettings:
    """Which judge, and what it is asked.

    Args:
        endpoint: the server's address, such as "http://localhost:8000"; a /v1 at its end changes nothing.
        model: a name that the server lists.
        template: a name of `judge_parsing.TEMPLATES`, or your own text with {prompt} where the prompt goes.
        mode: of your own text. A reply about pairs is a JSON object with "winner": "Image 1", "Image 2" or "tie", or
            the sentence "Image 1 is better." and so on, unless it has `dimensions`.
        dimensions: of your own text, the names that the reply gives numbers to, as "NAME: 3.5" each on its own; about
            pairs "NAME:", then "Image 1: 0.4" and "Image 2: 0.6".
        dimension: the only one that counts; "" for their mean.
        api_key_env: the environment variable that holds the key; "" for none. The key is kept nowhere else.
        timeout: seconds without a byte from the server, after which it is asked again.
        retries: of a request that failed and of a reply that could not be read, together.
        backoff: seconds before the first retry of a failed request, doubled each time, unless the server says how long.
        concurrency: questions at once.
        image_format: PNG is what the picture is; UnifiedReward's own scripts send JPEG of quality 95.
        quality: of JPEG, 1 to 100.
        retry_temperature: after a reply that could not be read, which greedy decoding would repeat.
        max_tokens: of a reply; Flex writes a long one.
        seed: of the server's sampling.
    """

    endpoint: str
    model: str
    template: str = "unified_reward_points"
    mode: Mode | None = None
    dimensions: tuple[str, ...] = ()
    dimension: str = ""
    api_key_env: str = ""
    timeout: float = 180.0
    retries: int = 4
    backoff: float = 1.0
    concurrency: int = 16
    image_format: Literal["png", "jpeg"] = "png"
    quality: int = 95
    temperature: float = 0.0
    retry_temperature: float = 0.5
    max_tokens: int = 4096
    seed: int = 0

    def __post_init__(self) -> None:
        base_url(self.endpoint)
        for name, lowest in (("retries", 0), ("concurrency", 1), ("max_tokens", 1), ("quality", 1)):
            if getattr(self, name) < lowest:
                raise ValueError(f"{name} must be {lowest} or above, got {getattr(self, name)}.")
        for name in ("backoff", "temperature", "retry_temperature"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise ValueError(f"{name} must be 0 or above, got {getattr(self, name)}.")
        if not 0 < self.timeout < float("inf"):
            raise ValueError(f"timeout must be above 0 seconds, got {self.timeout}.")
        if self.quality > 100:
            raise ValueError(f"quality must be 100 or below, got {self.quality}.")
        template = self.resolved()
        if self.dimension and self.dimension not in template.dimensions:
            raise ValueError(f"dimension must be one of {list(template.dimensions)}, got {self.dimension!r}.")

    def resolved(self) -> Template:
        """The named template, or the user's own.

        Raises:
            ValueError: no such name, or a text without {prompt}, mode or dimensions.
        """
        if self.template in TEMPLATES:
            template = TEMPLATES[self.template]
            if self.dimensions or self.mode not in (None, template.mode):
                raise ValueError(f"{self.template} is a template of {template.mode} with dimensions of its own.")
            return template
        if "{prompt}" not in self.template:
            rule = f"template must be one of {list(TEMPLATES)} or a text with {{prompt}} in it"
            raise ValueError(f"{rule}, got {self.template!r}.{nearest(self.template, list(TEMPLATES))}")
        if self.mode is None or (self.mode == "points" and not self.dimensions):
            raise ValueError("a template of your own needs mode: pairs, or mode: points and dimensions: [NAME, ...].")
        return Template(self.template, self.mode, self.dimensions)

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
        raise ValueError(f"a judge needs one prompt a picture, got {len(prompts)} for {len(images)} pictures.")
