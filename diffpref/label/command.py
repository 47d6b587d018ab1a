"""The command `diffpref label`: preference data from prompts, generators and rewards."""

from diffpref.label.settings import parse, to_mapping


def main(arguments: list[str]) -> int:
    """Run or continue a labelling run; ValueErrors are the user's errors."""
    config = parse(arguments)
    from diffpref.label.engine import label, write_config
    from diffpref.label.executors import Submitted
    from diffpref.label.plan import make_plan
    from diffpref.run.quiet import quiet_libraries

    quiet_libraries()
    executor, run = config.executor, config.run
    if not isinstance(executor, Submitted) or executor.in_job():
        label(config)
        return 0
    # The plan is made here, so that a mistake shows before anything queues.
    make_plan(run.output_dir, config.prompts, config.generators, seed=run.seed, shard_size=run.shard_size)
    print(executor.write_jobs(write_config(run.output_dir, to_mapping(config)), run.output_dir))
    return 0
