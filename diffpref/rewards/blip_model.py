"""BLIP with a head that gives one number, as ImageReward and CycleReward are, read from a published file of weights.

The towers are transformers' modules; the sizes come from the file, so that any model of the family loads. Axes: n
images of s x s pixels, l tokens.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from diffpref.rewards.checkpoint import check_keys, read_tensors

_HEAD_WIDTH = 64  # channels an attention head, in BERT and in every ViT of BLIP's

_NAMES = (
    ("vision.embeddings.class_embedding", "blip.visual_encoder.cls_token"),
    ("vision.embeddings.position_embedding", "blip.visual_encoder.pos_embed"),
    ("vision.embeddings.patch_embedding.", "blip.visual_encoder.patch_embed.proj."),
    ("vision.encoder.layers.", "blip.visual_encoder.blocks."),
    ("vision.post_layernorm.", "blip.visual_encoder.norm."),
    (".self_attn.projection.", ".attn.proj."),
    (".self_attn.qkv.", ".attn.qkv."),
    (".layer_norm", ".norm"),
    ("text.", "blip.text_encoder."),
    ("head.", "mlp.layers."),
)
"""Parts of our parameters' names and what the published files call them."""

IGNORED = frozenset(
    {
        "blip.text_encoder.embeddings.position_ids",  # 0, 1, 2, ...
        "blip.vision_proj.weight",  # the projections are BLIP's for contrastive training; no score reads them
        "blip.vision_proj.bias",
        "blip.text_proj.weight",
        "blip.text_proj.bias",
    }
)
"""What published files hold besides the model."""


@dataclass(frozen=True)
class Recipe:
    """In what the published models differ."""

    name: str
    max_length: int
    """Tokens that a prompt is cut or padded to, [CLS] and [SEP] among them."""
    layers: tuple[int, ...]
    """The head's linear layers, by their places in the published file's `mlp.layers`."""
    gelu: bool
    """Whether the head has GELU between its layers, or is affine as a whole."""
    mean: float
    """A score is (head's output - mean) / std."""
    std: float


class Blip(nn.Module):
    """The model, whose sizes are those of the published weights.

    Raises:
        KeyError: the weights lack one that a size is read from.
    """

    def __init__(self, recipe: Recipe, weights: Mapping[str, Tensor]) -> None:
        from transformers import BlipTextConfig, BlipTextModel, BlipVisionConfig, BlipVisionModel

        super().__init__()
        vision, text = "blip.visual_encoder.", "blip.text_encoder."
        patch = weights[f"{vision}patch_embed.proj.weight"].shape[-1]
        grid = round((weights[f"{vision}pos_embed"].shape[1] - 1) ** 0.5)
        channels, width = weights[f"{vision}cls_token"].shape[2], weights[f"{text}embeddings.LayerNorm.weight"].shape[0]
        self.size = patch * grid
        self.vision = BlipVisionModel(
            BlipVisionConfig(
                hidden_size=channels,
                intermediate_size=weights[f"{vision}blocks.0.mlp.fc1.weight"].shape[0],
                num_hidden_layers=_depth(weights, f"{vision}blocks."),
                num_attention_heads=max(1, channels // _HEAD_WIDTH),
                image_size=self.size,
                patch_size=patch,
                layer_norm_eps=1e-6,  # salesforce/BLIP:models/vit.py; transformers' default is 1e-5
                hidden_act="gelu",
            )
        )
        self.text = BlipTextModel(
            BlipTextConfig(
                vocab_size=weights[f"{text}embeddings.word_embeddings.weight"].shape[0],
                hidden_size=width,
                encoder_hidden_size=channels,
                intermediate_size=weights[f"{text}encoder.layer.0.intermediate.dense.weight"].shape[0],
                num_hidden_layers=_depth(weights, f"{text}encoder.layer."),
                num_attention_heads=max(1, width // _HEAD_WIDTH),
                max_position_embeddings=weights[f"{text}embeddings.position_embeddings.weight"].shape[0],
                layer_norm_eps=1e-12,
                hidden_act="gelu",
                is_decoder=True,  # only builds the cross-attention; no mask is causal unless forward is told so
            ),
            add_pooling_layer=False,
        )
        shapes = {place: weights[f"mlp.layers.{place}.weight"].shape for place in recipe.layers}
        self.head = nn.ModuleDict({str(place): nn.Linear(wide, out) for place, (out, wide) in shapes.items()})
        self.recipe = recipe

    def forward(
        self, pixels: Float[Tensor, "n 3 s s"], ids: Int[Tensor, "n l"], mask: Int[Tensor, "n l"]
    ) -> Float[Tensor, " n"]:
        """The scores of normalised images for their prompts; the head computes in float32 whatever the towers do.

        zai-org/ImageReward:ImageReward/ImageReward.py, score_gard; hjbahng/cyclereward:cyclereward/model.py, score.
        """
        seen = self.vision(pixel_values=pixels.to(self.vision.dtype)).last_hidden_state
        read = self.text(
            input_ids=ids,
            attention_mask=mask,
            encoder_hidden_states=seen,
            encoder_attention_mask=torch.ones(seen.shape[:2], dtype=mask.dtype, device=mask.device),
        ).last_hidden_state
        x = read[:, 0].float()
        for i, layer in enumerate(self.head.values()):
            x = layer(F.gelu(x) if self.recipe.gelu and i > 0 else x)
        return (x[:, 0] - self.recipe.mean) / self.recipe.std


def _depth(weights: Mapping[str, Tensor], prefix: str) -> int:
    return len({name[len(prefix) :].split(".")[0] for name in weights if name.startswith(prefix)})


def published_name(name: str) -> str:
    """What the published files call one of `Blip`'s parameters."""
    for ours, theirs in _NAMES:
        name = name.replace(ours, theirs)
    return name


def read_model(recipe: Recipe, file: Path, *, dtype: torch.dtype) -> Blip:
    """The model in a published file, its towers in `dtype`.

    Raises:
        ValueError: the file holds no weights, others than these, or weights of other shapes.
    """
    weights = {name: tensor for name, tensor in read_tensors(file).items() if name not in IGNORED}
    remedy = f"Name the published weights of {recipe.name}, not another model's."
    try:
        with torch.device("meta"):
            model = Blip(recipe, weights)
    except KeyError as missing:
        raise ValueError(f"{file} holds other weights: missing {missing.args[0]!r}. {remedy}") from None
    parameters = {published_name(name): parameter for name, parameter in model.named_parameters()}
    check_keys(file, weights, parameters, remedy=remedy)
    ours = {name: weights[published_name(name)] for name, _ in model.named_parameters()}
    ours = {name: tensor.to(torch.float32 if name.startswith("head.") else dtype) for name, tensor in ours.items()}
    # Not strict: some versions of transformers count the text's positions among the state; they are set below.
    model.load_state_dict(ours, strict=False, assign=True)
    positions = torch.arange(model.text.config.max_position_embeddings)[None]
    model.text.embeddings.register_buffer("position_ids", positions, persistent=False)
    assert not any(tensor.is_meta for tensor in [*model.parameters(), *model.buffers()]), "each tensor has its values"
    return model.eval().requires_grad_(False)
