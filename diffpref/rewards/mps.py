"""MPS, the multi-dimensional preference score: how do people like the image? (Zhang et al. 2024, 2405.14705)

A CLIP whose image tokens read those of the prompt's tokens that have to do with a condition. The published mask is
normalised over the batch, so that a score depended on its neighbours; here it is over each prompt, as in the published
evaluation, which takes one prompt at a time. Axes: n images, u prompts, p and l tokens of an image and a text,
d the joint space.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import torch
from annotated_types import Lt
from jaxtyping import Bool, Float
from PIL import Image
from torch import Tensor, nn

from diffpref.files.identity import files_hash
from diffpref.rewards.checkpoint import check_keys, hub_file, local_file, read_tensors, versions
from diffpref.rewards.clip_hf import LAION_H, load_config, load_processor
from diffpref.rewards.clip_pairs import BatchSize, Dtype, directions
from diffpref.rewards.mps_cross import HEAD, CrossModel, rotary_angles
from diffpref.rewards.vision import in_batches, unique
from diffpref.run.precision import DTYPES
from diffpref.settings import bounds

if TYPE_CHECKING:
    from transformers import CLIPConfig, CLIPModel

REPOSITORY = "RE-N-Y/mpsv1"
"""The published weights as a state dict; the authors' own MPS_overall_checkpoint.pth is a pickled module."""
OVERALL = (
    "light, color, clarity, tone, style, ambiance, artistry, shape, face, hair, hands, limbs, structure, instance, "
    "texture, quantity, attributes, position, number, location, word, things."
)
"""The condition of the one published checkpoint (Kwai-Kolors/MPS:README.md)."""


@dataclass(frozen=True)
class MPSSettings:
    """Which weights, and what of a prompt counts."""

    checkpoint: str = REPOSITORY
    """The hub repository; or a local state dict of the published names, safetensors or PyTorch's."""
    processor: str = LAION_H
    """A hub name or folder of the CLIP's config.json, tokenizer and preprocessor_config.json."""
    condition: str = OVERALL
    """What a prompt's tokens must have to do with; the published checkpoint knows the default alone."""
    threshold: Annotated[float, Lt(1)] = 0.3
    """Prompt tokens are read whose likeness to the condition is above this share of the likest token's; 0.3 in the
    published evaluations, 0.01 in the README; from 1 on none would be."""
    dtype: Dtype = "float32"
    """What the towers compute in."""
    batch_size: BatchSize = 32
    """Images, or prompts, that pass through a tower at once."""

    def __post_init__(self) -> None:
        bounds.check(self)

    def load(self, device: torch.device) -> "MPS":
        """The model in memory.

        Raises:
            ValueError: a file that is missing, is a pickled module, or holds other weights.
        """
        return MPS(self, device)


@dataclass(frozen=True)
class Text:
    """A prompt as images read it."""

    tokens: Float[Tensor, "l d"]
    whole: Float[Tensor, " d"]
    """Its direction, of length 1."""
    read: Bool[Tensor, " l"]


class MPS:
    """A CLIPModel and the cross-attention as a reward."""

    def __init__(self, settings: MPSSettings, device: torch.device) -> None:
        if settings.checkpoint == REPOSITORY:
            path = hub_file(REPOSITORY, "model.safetensors")
        else:
            path = local_file(settings.checkpoint, f"a state dict of MPS, or {REPOSITORY!r} to download it")
        config = load_config(settings.processor)
        self.processor = load_processor(settings.processor, config)
        self.dtype, self.device = DTYPES[settings.dtype], device
        self.threshold, self.batch_size = settings.threshold, settings.batch_size
        clip, cross, angles = _load(config, path)
        self.logit_scale = clip.logit_scale.exp().item()  # before the cast, which would round it
        self.clip: CLIPModel = clip.to(device=device, dtype=self.dtype)  # type: ignore[arg-type]
        self.cross, self.angles = cross.to(device=device, dtype=self.dtype), angles.to(device)
        with torch.no_grad():
            self.condition = self._hidden([settings.condition])[0][0]
        self.provenance = {
            "scorer": "mps",
            "checkpoint": settings.checkpoint,
            "sha256": files_hash([path]),
            "preprocessing": self.processor.rule.name(),
            "tokenizer": f"{settings.processor} ({type(self.processor.tokenizer).__name__}, "
            f"{self.processor.length} tokens)",
            "dtype": settings.dtype,
            "unit": "scaled",
            "condition": settings.condition,
            "threshold": str(settings.threshold),
            **versions("torch", "transformers", "pillow"),
        }

    @torch.no_grad()
    def score(self, images: Sequence[Image.Image], prompts: Sequence[str]) -> Float[Tensor, " n"]:
        """exp(logit_scale) cos(prompt, image after reading the prompt)
        (Kwai-Kolors/MPS:eval_overall_mps_on_hpdv2.py, `infer_one_sample`)."""
        if len(images) != len(prompts):
            raise ValueError(f"a reward needs one prompt per image, got {len(prompts)} for {len(images)} images.")
        once, places = unique(prompts)
        scores, known = torch.zeros(len(images)), dict[int, Text]()
        # Images of a prompt lie together then, so that few prompts' tokens are kept at a time.
        for batch in in_batches(sorted(range(len(images)), key=places.__getitem__), self.batch_size):
            wanted = list(dict.fromkeys(places[i] for i in batch))
            new = [place for place in wanted if place not in known]
            known = {place: known[place] for place in wanted if place in known}
            known |= zip(new, self._read([once[place] for place in new]), strict=True)
            found = self._compare([images[i] for i in batch], [known[places[i]] for i in batch])
            scores[torch.tensor(batch)] = self.logit_scale * found.cpu()
        return scores

    def pair_logit(self, a: Float[Tensor, " n"], b: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
        """a - b: the published probability is the softmax of two scores (Kwai-Kolors/MPS:README.md)."""
        return a - b

    def _hidden(self, texts: Sequence[str]) -> tuple[Float[Tensor, "u l d"], Float[Tensor, "u d"]]:
        """Every token's state in the joint space, padding's too, and the end token's; in float32."""
        output = self.clip.text_model(input_ids=self.processor.tokens(texts).to(self.device))
        project = self.clip.text_projection
        return project(output.last_hidden_state).float(), project(output.pooler_output).float()

    def _read(self, prompts: Sequence[str]) -> list[Text]:
        """The prompts, each with the tokens that have to do with the condition."""
        if not prompts:
            return []
        tokens, whole = self._hidden(prompts)
        likeness = (tokens @ self.condition.T).amax(-1)
        read = likeness / likeness.amax(-1, keepdim=True) > self.threshold
        return [Text(*each) for each in zip(tokens, directions(whole), read, strict=True)]

    def _compare(self, images: Sequence[Image.Image], texts: Sequence[Text]) -> Float[Tensor, " n"]:
        """The cosine of each prompt and its image's first token after reading, in float32."""
        pixels = self.processor.rule(images, self.device).to(self.dtype)
        image = self.clip.visual_projection(self.clip.vision_model(pixel_values=pixels).last_hidden_state)
        tokens = torch.stack([text.tokens for text in texts]).to(self.dtype)
        read = torch.stack([text.read for text in texts])
        first = self.cross(image, tokens, read, self.angles)[:, 0]
        return (directions(first) * torch.stack([text.whole for text in texts])).sum(-1)


def _load(config: "CLIPConfig", path: Path) -> "tuple[CLIPModel, CrossModel, Tensor]":
    """CLIP and cross-attention in float32 with the file's weights, and the rotary angles."""
    from transformers import CLIPModel

    width = config.projection_dim
    if not width or width % HEAD:
        raise ValueError(f"MPS needs a CLIP whose projection_dim is a multiple of {HEAD}, got {width}.")
    tensors = {_name(key): tensor for key, tensor in read_tensors(path).items() if not key.endswith(".position_ids")}
    clip, cross = CLIPModel(config), CrossModel(width)
    model = nn.ModuleDict({"model": clip, "cross_model": cross}).eval().requires_grad_(False)
    frequencies = [f"cross_model.layers.{i}.1.rotary_emb.inv_freq" for i in range(4)]
    wanted = {**model.state_dict(), **{name: torch.empty(HEAD // 2) for name in frequencies}}
    remedy = (
        "It must be the state dict of Kwai-Kolors/MPS's module: model.*, a CLIPModel of the processor's config.json, "
        "and cross_model.*, four layers of cross-attention."
    )
    check_keys(path, tensors, wanted, remedy=remedy)
    found = [tensors.pop(name) for name in frequencies]
    model.load_state_dict(tensors)
    return clip, cross, rotary_angles(found[0], clip.vision_model.embeddings.num_positions)


def _name(key: str) -> str:
    """The published name without the wrappers' parts: ".fn" of a residual, "mps." of the republished module."""
    return key.removeprefix("mps.").replace(".fn.", ".")
