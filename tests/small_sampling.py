"""Where samples end before they are decoded, for the families' tests."""

from typing import Any

from torch import Tensor

from diffpref.types import Cond


def latents_of(decoder: Any, prompts: Cond, empty: Cond, options: dict[str, Any], count: int) -> Tensor:
    """The latents of the first `count` samples, drawn as one batch."""
    one = {name: value for name, value in options.items() if name not in ("batch_size", "resolution")}
    one |= {"seeds": options["seeds"][:count], "resolution": options["resolution"]}
    return decoder.latents({name: value[:count] for name, value in prompts.items()}, empty, **one)
