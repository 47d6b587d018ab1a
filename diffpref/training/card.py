"""README.md of a trained model: a Hugging Face model card, written without asking the hub anything."""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from huggingface_hub import ModelCard, ModelCardData
from PIL import Image

from diffpref.backbones.adapters import Words
from diffpref.report.grid import side_by_side
from diffpref.training.report import read_pairs

SHOWN, SIDE = 6, 320  # pairs in the picture, and their largest side in pixels

BODY = """\
# {title}

{what} `{base_model}`, trained on preferences with {method} by diffpref.

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


def write_card(
    run: Path,
    *,
    base_model: str,
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
        base_model: a name on the hub, or a folder; only a name on the hub goes into the metadata.
        adapter: the choice by name.
        words: what is said of a result of it.
        objective: the method's hyperparameters by name.
        dataset: a name on the hub, or a path.
        prompt: an example for the usage snippet.
        versions: of the packages that touch the result, by name.
    """
    data = ModelCardData(
        library_name="diffusers",
        pipeline_tag="text-to-image",
        base_model=base_model if _on_hub(base_model) else None,
        base_model_relation=words.relation if _on_hub(base_model) else None,
        datasets=[dataset] if _on_hub(dataset) else None,
        tags=_tags(method, words.tags),
    )
    settings = {"method": method, "data": dataset, "adapter": adapter, **objective}
    network = "transformer" if (run / "transformer").is_dir() else "unet"
    usage = words.usage.format(
        folder=_quote(run.resolve().name), base_model=_quote(base_model), prompt=_quote(prompt), network=network
    )
    body = BODY.format(
        title=run.resolve().name,
        what=words.what,
        base_model=base_model,
        method=method,
        pictures=_pictures(run / "samples"),
        usage=usage,
        rows="\n".join(f"| {_cell(name)} | {_cell(value)} |" for name, value in settings.items()),
        versions=", ".join(f"{name} {version}" for name, version in versions.items()) + ".",
    )
    ModelCard(f"---\n{data.to_yaml()}\n---\n\n{body}").save(run / "README.md")


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
