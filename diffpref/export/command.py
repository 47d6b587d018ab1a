"""The command `diffpref export RUN --to TARGET`: a finished run as a file for other programs."""

from itertools import takewhile

DESCRIPTION = """usage: diffpref export RUN [RUN ...] --to diffusers|comfyui|kohya|peft|checkpoint [--key value ...]

A finished run as a file for other programs: a LoRA, several LoRAs as one, or the whole model."""


def main(arguments: list[str]) -> int:
    """Write the export; ValueErrors are the user's to mend."""
    from diffpref.run.quiet import quiet_libraries
    from diffpref.settings import command_line

    runs = [*takewhile(lambda word: word[:1] != "-", arguments)]
    flags = [*(["--runs", *runs] if runs else []), *arguments[len(runs) :]]
    from diffpref.export.config import EXAMPLE, READER

    config = command_line.parse(READER, flags, prog="diffpref export", description=DESCRIPTION, example=EXAMPLE)
    quiet_libraries()
    from diffpref.export.writing import export

    written, lines = export(config.what, config.target)
    print("\n".join([*lines, f"written: {written}"]))
    return 0
