"""The command `diffpref label`: preference data from prompts, generators and rewards."""

from diffpref.labelling.settings import parse


def main(arguments: list[str]) -> int:
    """Run or continue a labelling run; ValueErrors are the user's to mend."""
    config = parse(arguments)
    from diffpref.labelling.engine import label, write_config
    from diffpref.labelling.executors import slurm
    from diffpref.labelling.plan import make_plan
    from diffpref.run.quiet import quiet_libraries

    quiet_libraries()
    if config.run.executor == "slurm" and not slurm.in_task():
        # The plan is made here, so that a mistake shows before anything queues.
        make_plan(config)
        print(slurm.write_jobs(write_config(config), config.run))
        return 0
    label(config)
    return 0
