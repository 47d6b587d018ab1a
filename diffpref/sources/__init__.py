"""Loops around the loop, for methods that learn from the model's own samples: D3PO's chains, DDO's self-play."""

from collections.abc import Callable
from pathlib import Path

from diffpref.training.config import TrainConfig


def run(config: TrainConfig, *, say: Callable[[str], None] = print) -> Path:
    """Train as the objective's data asks: once on a data set, or in rounds on the model's samples.

    Raises:
        ValueError: settings or data that cannot work; before anything long, naming what and the remedy.
    """
    from diffpref.sources.dataset import candidates_of

    kind = candidates_of(config)
    if kind == "chain_pairs":
        from diffpref.sources.on_policy import learn_from_chains

        return learn_from_chains(config, say=say)
    if kind == "real_fake":
        from diffpref.sources.self_play import play

        return play(config, say=say)
    from diffpref.training.loop import train

    return train(config, say=say)
