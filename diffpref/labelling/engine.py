"""A labelling run: the plan, then its stages in order, each doing what is not done yet.

images -> filter -> scores -> labels -> packs -> report
"""

import errno
from collections.abc import Callable
from pathlib import Path

from diffpref.files import atomic
from diffpref.labelling.config import STAGES, LabelConfig
from diffpref.labelling.executors import Executor, find_executor
from diffpref.labelling.filter import Filter
from diffpref.labelling.generate import Generate
from diffpref.labelling.labels import Label, moments
from diffpref.labelling.pack import Pack
from diffpref.labelling.plan import PLAN, Plan, make_plan
from diffpref.labelling.progress import Bar
from diffpref.labelling.report import write_report
from diffpref.labelling.score import Score, reward_key
from diffpref.labelling.settings import to_mapping
from diffpref.labelling.shards import FileHashes
from diffpref.labelling.stages import Stage, kept_marker, pending

CONFIG = "label.yaml"


def label(config: LabelConfig, *, say: Callable[[str], None] = print) -> Path:
    """Do the run, or what is left of it; returns its folder.

    Raises:
        ValueError: what a user can mend: settings, checkpoints, another plan in the folder, files changed by hand, too
            many failures, a full disk. What was finished stays, and the same command goes on.
    """
    hashes = FileHashes(config.run.output_dir)
    keys = {reward.name: reward_key(reward, hashes) for reward in config.rewards}
    executor = find_executor(config.run)
    try:
        return _run(config, executor, keys, hashes, say)
    except OSError as problem:
        if problem.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        raise ValueError(
            f"{config.run.output_dir}: the disk is full ({problem.strerror}). Free some space and run the same command "
            "again: finished shards stay."
        ) from None
    finally:
        executor.close()


def _run(
    config: LabelConfig,
    executor: Executor,
    keys: dict[str, str],
    hashes: FileHashes,
    say: Callable[[str], None],
) -> Path:
    root = config.run.output_dir
    # One process writes the plan, the others find it; all compare it with their settings.
    executor.await_plan(root / PLAN)
    plan = make_plan(config, hashes)
    if executor.main:
        write_config(config)
        say(f"{len(plan.prompts)} prompts, {config.candidates} pictures each, {plan.shards} shards in {root}")
    wanted = config.run.stages or STAGES
    early: list[Stage] = []
    if "images" in wanted:
        early += [Generate(plan, generator) for generator in config.generators]
    if "filter" in wanted:
        early.append(Filter(plan))
    if "scores" in wanted:
        early += [Score(plan, reward, keys[reward.name]) for reward in config.rewards]
    # Before any work: what is expensive to recompute and was made with other settings refuses the run.
    for stage in early:
        for shard in range(plan.shards if stage.keep else 0):
            kept_marker(stage, shard)
    for stage in early:
        _do(stage, plan, executor)
    late = [name for name in ("labels", "packs", "report") if name in wanted]
    if not late:
        return root
    if early and not all([executor.wait(stage, plan.shards) for stage in early]):
        say(f"this share is done; when the others are, label and pack with --executor local --stages {' '.join(late)}")
        return root
    if "labels" in wanted:
        stage = Label(plan, moments(plan))
        _do(stage, plan, executor)
        executor.wait(stage, plan.shards)
    if "packs" in wanted:
        for pack in config.packs:
            stage = Pack(plan, pack)
            _do(stage, plan, executor)
            if executor.wait(stage, plan.shards) and executor.main:
                say(f"packed: {root / stage.name}")
    if "report" in wanted and executor.main:
        say(f"report: {write_report(root)}")
    return root


def _do(stage: Stage, plan: Plan, executor: Executor) -> None:
    """The pending shards of a stage, through the executor."""
    todo = [shard for shard in executor.mine(plan.shards) if pending(stage, shard)]
    if todo:
        with Bar(stage.name, sum(map(stage.pictures, todo)), shown=executor.shows) as bar:
            executor.run(stage, todo, bar)


def write_config(config: LabelConfig) -> Path:
    """The whole settings as a YAML file in the run's folder."""
    import yaml

    path = config.run.output_dir / CONFIG
    config.run.output_dir.mkdir(parents=True, exist_ok=True)
    atomic.write_text(path, yaml.safe_dump(to_mapping(config), sort_keys=False, allow_unicode=True))
    return path
