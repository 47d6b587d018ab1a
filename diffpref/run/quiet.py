"""What the libraries say while they load, silenced for our own commands."""

import logging

import torch


def quiet_libraries() -> None:
    """Silence what the libraries print while they load: bars for files, and xformers' warning where there is no GPU.

    For our own commands; a program that imports diffpref keeps its settings. Call it before diffusers is imported."""
    if not torch.cuda.is_available():
        logging.getLogger("xformers").setLevel(logging.ERROR)
    import diffusers.utils.logging
    import transformers.utils.logging

    diffusers.utils.logging.disable_progress_bar()
    diffusers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
