"""README.md of a trained model: a Hugging Face model card, written without asking the hub anything."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import ModelCard, ModelCardData
from PIL import Image

from diffpref.backbones import Checkpoint
from diffpref.backbones.adapters import Words
from diffpref.report.grid import side_by_side
from diffpref.training.report import read_pairs

SHOWN, SIDE = 6, 320  # pairs in the picture, and their largest side in pixels

SNIPPET = """\
import torch
from diffusers import {classes}
{own}
folder = {folder}  # this folder, or its name on the hub
device, dtype = ("cuda", torch.float16) if torch.cuda.is_available() else ("cpu", torch.float32)
{network}pipe = {pipeline}.from_pretrained({base}, {options}dtype=dtype).to(device)
{load}image = {call}.images[0]
"""
BODY = """\
# {title}

{what} {base}, trained on preferences with {method} by diffpref.

{pictures}## Use it

```python
{usage}```

## Training

| | |
|---|---|
{rows}

The settings are in `config.yaml`, the curves in `report.html`.

## Versions

{versions}
"""


@dataclass(frozen=True, kw_only=True)
class Base:
    """What a result is loaded on, and how its user draws; the fields are a family's."""

    checkpoint: Checkpoint
    component: str
    pipeline: str
    call: str
    absent: Sequence[str] = ()
    """Parts that the pipeline does without, as SD3 without T5: it wants to be told, though its index says so."""


def write_card(
    run: Path,
    *,
    base: Base,
    method: str,
    objective: Mapping[str, object],
    dataset: str,
    adapter: str,
    words: Words,
    prompt: str,
    versions: Mapping[str, str],
) -> None:
    """Writes README.md into the run directory, and samples/before-after.png where samples/pairs has pictures.

    Args:
        run: as the user has named it: the card's Python runs where the training was started.
        base: only what has a name on the hub goes into the metadata.
        adapter: the choice by name.
        words: what is said of a result of it.
        objective: the method's hyperparameters by name.
        dataset: a name on the hub, or a path.
        prompt: an example for the usage snippet.
        versions: of the packages that touch the result, by name.
    """
    source, weights = base.checkpoint.source, base.checkpoint.network_weights
    # A LoRA belongs to the network that it was trained over; a whole network replaces it.
    over = None if weights is None or not words.load else str(weights)
    base_model = over or source
    data = ModelCardData(
        library_name="diffusers",
        pipeline_tag="text-to-image",
        base_model=base_model if _on_hub(base_model) else None,
        base_model_relation=words.relation if _on_hub(base_model) else None,
        datasets=[dataset] if _on_hub(dataset) else None,
        tags=_tags(method, words.tags),
    )
    settings = {"method": method, "data": dataset, "adapter": adapter, **objective}
    body = BODY.format(
        title=run.resolve().name,
        what=words.what,
        base=f"`{source}`" if over is None else f"`{source}` with the network of `{over}`",
        method=method,
        pictures=_pictures(run / "samples"),
        usage=snippet(run, base, words, prompt),
        rows="\n".join(f"| {_cell(name)} | {_cell(value)} |" for name, value in settings.items()),
        versions=", ".join(f"{name} {version}" for name, version in versions.items()) + ".",
    )
    ModelCard(f"---\n{data.to_yaml()}\n---\n\n{body}").save(run / "README.md")


def snippet(run: Path, base: Base, words: Words, prompt: str) -> str:
    """Python that loads the result on the base that it was trained over, and draws the prompt."""
    checkpoint = base.checkpoint
    module, _, pipeline = base.pipeline.partition(":")
    of_diffusers = module == "diffusers"
    network = _network(base, words)
    options = {"revision": checkpoint.revision, "variant": checkpoint.variant}
    given = f"{base.component}=network, " if network else ""
    given += "".join(f"{name}={_quote(value)}, " for name, value in options.items() if value is not None)
    given += "".join(f"{name}=None, " for name in base.absent)
    return SNIPPET.format(
        classes=", ".join(["AutoModel"] * bool(network) + [pipeline] * of_diffusers),
        own="" if of_diffusers else f"from {module} import {pipeline}\n",
        folder=_quote(str(run)),
        network=network,
        pipeline=pipeline,
        base=_quote(checkpoint.source),
        options=given,
        load=words.load,
        call=base.call.format(prompt=_quote(prompt)),
    )


def _network(base: Base, words: Words) -> str:
    """The line that loads a network other than the pipeline's own: the result, or what a LoRA was trained over."""
    weights = base.checkpoint.network_weights
    if words.load and weights is None:
        return ""
    whole = not words.load or (Path(str(weights)) / base.component).is_dir()
    subfolder = f'subfolder="{base.component}", ' if whole else ""
    place = _quote(str(weights)) if words.load else "folder"
    return f"network = AutoModel.from_pretrained({place}, {subfolder}dtype=dtype)\n"


def _pictures(samples: Path) -> str:
    """Markdown that shows before and after: side by side, else the first and the last sample grid, else nothing."""
    if pairs := read_pairs(samples)[:SHOWN]:
        befores, afters, captions = zip(*pairs, strict=True)
        sheet = side_by_side([_small(path) for path in befores], [_small(path) for path in afters], captions)
        sheet.save(samples / "before-after.png")
        return "![before and after, the same prompts and noise](samples/before-after.png)\n\n"
    grids = sorted(path.name for path in samples.glob("step-[0-9]*.png"))
    if len(grids) < 2:
        return ""
    return f"Before:\n\n![before](samples/{grids[0]})\n\nAfter:\n\n![after](samples/{grids[-1]})\n\n"


def _small(path: Path) -> Image.Image:
    with Image.open(path) as picture:
        picture = picture.convert("RGB")
    picture.thumbnail((SIDE, SIDE))
    return picture


def _tags(method: str, more: Sequence[str]) -> list[str]:
    """The hub's search tags, without repetition."""
    name = re.sub(r"[^a-z0-9]+", "-", method.lower()).strip("-")
    found = ["text-to-image", "diffusers", "diffusers-training", "diffpref", name]
    found += ["dpo"] * ("dpo" in name) + [*more]
    return list(dict.fromkeys(found))


def _on_hub(name: str) -> bool:
    """Whether this is the form of a name on the hub, and no file here has it."""
    return re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", name) is not None and not Path(name).exists()


def _quote(text: str) -> str:
    """The text as a Python literal in double quotes."""
    return json.dumps(text, ensure_ascii=False)


def _cell(value: object) -> str:
    return str(value).replace("|", "\\|").replace("\n", " ")
