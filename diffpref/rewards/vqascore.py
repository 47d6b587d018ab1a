"""VQAScore (arXiv 2404.01291) with a Qwen-VL: the probability that it says yes when asked whether the image shows the
prompt.

There is no one VQAScore: a score is that of its model and its question, and the provenance names both. Axes: n
images, t tokens, v words.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, cast

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from diffpref.files.identity import files_hash, sha256
from diffpref.rewards.checkpoint import versions, weight_files
from diffpref.rewards.clip_pairs import BatchSize, Dtype
from diffpref.rewards.qwen import LIBRARIES, inputs, load_processor, refuse_special_tokens, resized
from diffpref.rewards.vision import in_batches
from diffpref.run.precision import DTYPES
from diffpref.settings import bounds

if TYPE_CHECKING:
    from transformers import PreTrainedModel, ProcessorMixin

EPSILON = 1e-6
"""How near to 0 or 1 a probability counts in `pair_logit`: float32 has no finer steps below 1."""


class VqaScore:
    """The model in memory."""

    def __init__(
        self, model: "PreTrainedModel", *, processor: "ProcessorMixin", answers: list[int], settings: "VqaScoreSettings"
    ) -> None:
        self.model = model.eval().requires_grad_(False)
        self.processor = processor
        self.answers = answers
        self.settings = settings
        resizing = processor.image_processor
        self._factor: int = resizing.patch_size * resizing.merge_size
        self._pixels: tuple[int, int] = (resizing.size["shortest_edge"], resizing.size["longest_edge"])
        words = [processor.tokenizer.decode([token]) for token in answers]
        self.provenance = {
            "scorer": "vqascore",
            "checkpoint": settings.checkpoint,
            **_weights(settings.checkpoint, model),
            "template": settings.template,
            "template sha256": sha256(settings.template),
            "answers": repr(words),
            "preprocessing": f"PIL bicubic to multiples of {self._factor} within {self._pixels} pixels",
            "dtype": f"{settings.dtype}, softmax float32",
            "unit": "probability of the answers, in [0, 1]",
            **versions(*LIBRARIES),
        }

    @torch.no_grad()
    def score(self, images: Sequence[Image.Image], prompts: Sequence[str]) -> Float[Tensor, " n"]:
        """The probability in [0, 1] that the answer's first token is one of `answers`, on the CPU.

        An image's score depends on what else is in its batch by the rounding of `dtype` alone.

        Raises:
            ValueError: a prompt that holds one of the model's special tokens, or an image of extreme ratio.
        """
        refuse_special_tokens(self.processor, prompts)
        pairs = list(zip(images, prompts, strict=True))
        scores = [self._batch(batch) for batch in in_batches(pairs, self.settings.batch_size)]
        return torch.cat(scores) if scores else torch.zeros(0)

    def _batch(self, pairs: Sequence[tuple[Image.Image, str]]) -> Float[Tensor, " n"]:
        low, high = self._pixels
        images = [resized(image, factor=self._factor, min_pixels=low, max_pixels=high) for image, _ in pairs]
        questions = [self.settings.template.replace("{}", prompt) for _, prompt in pairs]
        # Padding is on the left, so that the last place of every row is the one before the answer.
        batch = inputs(self.processor, images, questions, padding_side="left", device=self.model.device)
        logits: Float[Tensor, "n v"] = self.model(**batch, use_cache=False, logits_to_keep=1).logits[:, -1].float()
        return logits.log_softmax(1)[:, self.answers].logsumexp(1).exp().clamp(max=1).cpu()

    def pair_logit(self, a: Float[Tensor, " n"], b: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
        """logit(P_a) - logit(P_b), where a P nearer to 0 or 1 than `EPSILON` counts as that near."""
        logit_a, logit_b = (p.double().clamp(EPSILON, 1 - EPSILON).logit() for p in (a, b))
        return (logit_a - logit_b).to(a.dtype)


@dataclass(frozen=True)
class VqaScoreSettings:
    """Which model, and what it is asked."""

    checkpoint: str = "Qwen/Qwen2.5-VL-7B-Instruct"
    """A folder or hub repository of a Qwen2-VL, Qwen2.5-VL, Qwen3-VL or one that is called as they are."""
    template: str = 'Does this figure show "{}"? Please answer Yes or No.'
    """The question, with {} where the prompt goes (linzhiqiu/t2v_metrics since 3.1)."""
    answers: tuple[str, ...] = ("Yes", "yes", " Yes", " yes")
    """The spellings that count as yes; those that are no single token of the model are left out."""
    dtype: Dtype = "bfloat16"
    """Of the model; the softmax is float32's."""
    batch_size: BatchSize = 8
    """Images that pass through the model at once."""

    def __post_init__(self) -> None:
        if self.template.count("{}") != 1:
            raise ValueError(f"template must hold {{}} once, where the prompt goes, got {self.template!r}.")
        bounds.check(self)

    def load(self, device: torch.device) -> VqaScore:
        """The model on the device.

        Raises:
            ValueError: files that are missing or incomplete, or no answer that is a single token.
        """
        from transformers import AutoModelForImageTextToText

        processor = load_processor(self.checkpoint)
        answers = _single_tokens(processor, self.answers, self.checkpoint)
        try:
            loaded = AutoModelForImageTextToText.from_pretrained(
                self.checkpoint, dtype=DTYPES[self.dtype], attn_implementation="sdpa", output_loading_info=True
            )
        except (OSError, ValueError) as problem:
            raise ValueError(
                f"{self.checkpoint} is no vision-language model that can be loaded: {problem}"
            ) from problem
        model, notes = cast("tuple[PreTrainedModel, dict[str, set[str]]]", loaded)
        # Weights that are missing would be drawn at random, and only a warning would say so.
        missing = sorted(notes["missing_keys"])
        if missing:
            raise ValueError(f"{self.checkpoint}: {len(missing)} weights are missing, such as {missing[:3]}.")
        return VqaScore(model.to(device), processor=processor, answers=answers, settings=self)  # type: ignore[arg-type]


def _single_tokens(processor: "ProcessorMixin", answers: Sequence[str], checkpoint: str) -> list[int]:
    tokenizer = processor.tokenizer
    spelled = [tokenizer(answer, add_special_tokens=False)["input_ids"] for answer in answers]
    single = sorted({ids[0] for ids in spelled if len(ids) == 1})
    if not single:
        raise ValueError(f"answers: none of {list(answers)} is a single token of {checkpoint}; name one that is.")
    return single


def _weights(checkpoint: str, model: "PreTrainedModel") -> dict[str, str]:
    """The SHA-256 of a folder's weights, or the commit of a hub repository."""
    if Path(checkpoint).is_dir():
        return {"sha256": files_hash(weight_files(Path(checkpoint)))}
    return {"commit": str(getattr(model.config, "_commit_hash", None))}
