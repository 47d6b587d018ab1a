"""A labelling run: the plan, then its stages in order, each doing what is not done yet.

images -> filter -> scores -> labels -> packs -> report
"""

import errno
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from diffpref.files import atomic
from diffpref.label.config import STAGES, LabelConfig
from diffpref.label.executors import Workers
from diffpref.label.filter import Filter
from diffpref.label.generate import Generate
from diffpref.label.labels import Label, moments
from diffpref.label.pack import Pack
from diffpref.label.plan import PLAN, Plan, make_plan
from diffpref.label.progress import Bar
from diffpref.label.report import write_report
from diffpref.label.score import Score, reward_key
from diffpref.label.settings import to_mapping
from diffpref.label.shards import FileHashes
from diffpref.label.stages import Stage, kept_marker, pending
from diffpref.settings import bounds

CONFIG = "label.yaml"


def label(config: LabelConfig, *, say: Callable[[str], None] = print) -> Path:
    """Do the run, or what is left of it; returns its folder.

    Raises:
        ValueError: user errors: settings, checkpoints, another plan in the folder, files changed by hand, too many
            failures, a full disk. What was finished stays, and the same command goes on.
    """
    bounds.check(config)
    run, root = config.run, config.run.output_dir
    hashes = FileHashes(root)
    keys = {reward.name: reward_key(reward, hashes) for reward in config.rewards}
    with closing(config.executor.start(root, run.threads_per_worker)) as workers, _full_disk_explained(root):
        # One process writes the plan, the others find it; all compare it with their settings.
        workers.await_plan(root / PLAN)
        plan = make_plan(
            root, config.prompts, config.generators, seed=run.seed, shard_size=run.shard_size, hashes=hashes
        )
        if workers.main:
            write_config(root, to_mapping(config))
            say(f"{len(plan.prompts)} prompts, {plan.candidates} images each, {plan.shards} shards in {root}")
        share = run.max_failure_share
        early: dict[str, list[Stage]] = {
            "images": [Generate(plan, generator, run.retries, share) for generator in config.generators],
            "filter": [Filter(plan, config.checks)],
            "scores": [Score(plan, reward, keys[reward.name], share) for reward in config.rewards],
        }
        rewards = [reward.name for reward in config.rewards]
        packs = [Pack(plan, pack, rewards) for pack in config.packs]

        def labels() -> Stage:
            return Label(plan, config.rewards, config.aggregator, config.labels.weights, moments(plan, config.rewards))

        _do_stages(plan, workers, run.stages or STAGES, early, labels, packs, say)
    return root


def _do_stages(
    plan: Plan,
    workers: Workers,
    wanted: Sequence[str],
    early: Mapping[str, Sequence[Stage]],
    labels: Callable[[], Stage],
    packs: Sequence[Stage],
    say: Callable[[str], None],
) -> None:
    """The stages that are wanted.

    Args:
        early: what is drawn, filtered and scored; workers may do these at different times.
        labels: makes the stage of the labels, which reads every score.
    """
    first = [stage for name, stages in early.items() if name in wanted for stage in stages]
    # Before any work: what is expensive to recompute and was made with other settings refuses the run.
    for stage in first:
        for shard in range(plan.shards if stage.keep else 0):
            kept_marker(stage, shard)
    for stage in first:
        _do(stage, plan.shards, workers)
    late = [name for name in ("labels", "packs", "report") if name in wanted]
    if late and first and not all([workers.wait(stage, plan.shards) for stage in first]):
        say(f"this share is done; when the others are, label and pack with --executor local --stages {' '.join(late)}")
        return
    if "labels" in late:
        stage = labels()
        _do(stage, plan.shards, workers)
        workers.wait(stage, plan.shards)
    for stage in packs if "packs" in late else ():
        _do(stage, plan.shards, workers)
        if workers.wait(stage, plan.shards) and workers.main:
            say(f"packed: {plan.root / stage.name}")
    if "report" in late and workers.main:
        say(f"report: {write_report(plan.root)}")


def _do(stage: Stage, shards: int, workers: Workers) -> None:
    """The pending shards of a stage, by the workers."""
    todo = [shard for shard in workers.share(shards) if pending(stage, shard)]
    if todo:
        with Bar(stage.name, sum(map(stage.images, todo)), shown=workers.shows) as bar:
            workers.run(stage, todo, bar)


@contextmanager
def _full_disk_explained(folder: Path) -> Iterator[None]:
    """Turns the error of a full disk into one that says what to do."""
    try:
        yield
    except OSError as problem:
        if problem.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        raise ValueError(
            f"{folder}: the disk is full ({problem.strerror}). Free some space and run the same command again: "
            "finished shards stay."
        ) from None


def write_config(folder: Path, settings: Mapping[str, Any]) -> Path:
    """The whole settings as a YAML file in the run's folder."""
    import yaml

    folder.mkdir(parents=True, exist_ok=True)
    atomic.write_text(folder / CONFIG, yaml.safe_dump(dict(settings), sort_keys=False, allow_unicode=True))
    return folder / CONFIG
