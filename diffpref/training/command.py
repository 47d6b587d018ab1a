"""`diffpref train --config FILE [--key value ...]`: one training run."""


def main(arguments: list[str]) -> int:
    """Parse the settings and train; ValueErrors are the user's to mend."""
    from diffpref.training.settings import parse

    config = parse(arguments)
    from diffpref.run.quiet import quiet_libraries

    quiet_libraries()
    from diffpref.training.loop import train

    folder = train(config)
    from accelerate import PartialState

    PartialState().destroy_process_group()
    report = folder / "report.html"
    print(f"done: {config.run.output_dir}" + (f", {report}" if report.is_file() else ""))
    return 0
