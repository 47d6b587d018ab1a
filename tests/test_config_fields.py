"""Every setting: one name, a sentence, and code that reads it."""

import ast
import dataclasses
from pathlib import Path

from diffpref.backbones.adapters import ADAPTERS
from diffpref.engine.modes import LOSS_MODES
from diffpref.objectives import OBJECTIVES
from diffpref.probes import PROBES
from diffpref.settings.axis import Axis
from diffpref.sources import SOURCES
from diffpref.training.config import ALIASES, TrainConfig
from diffpref.training.optimizers import OPTIMIZERS

ROOT = Path(__file__).parent.parent
GROUPS = {field.name: type(getattr(TrainConfig(), field.name)) for field in dataclasses.fields(TrainConfig)}
FIELDS = {(group, field.name) for group, cls in GROUPS.items() for field in dataclasses.fields(cls)}
CHOICES = ("objective", "probe", "source", "adapter", "optimizer", "mode")
TABLES = (OBJECTIVES, PROBES, SOURCES, ADAPTERS, OPTIMIZERS, LOSS_MODES)
CHOSEN = tuple(Axis("", table).member(name, "") for table in TABLES for name in table)
DIFFUSERS = """learning_rate optimizer adam_beta1 adam_beta2 adam_weight_decay adam_epsilon max_grad_norm lr_scheduler
    lr_warmup_steps max_train_steps gradient_accumulation_steps output_dir seed mixed_precision gradient_checkpointing
    allow_tf32 enable_xformers_memory_efficient_attention checkpointing_steps checkpoints_total_limit tracker_name
    validation_prompts validation_steps num_inference_steps guidance_scale"""
"""Names that the diffusers scripts made common, and so need no sentence."""


def test_field_names_are_unique_and_aliases_point_at_them() -> None:
    names = [name for _, name in FIELDS]
    assert len(set(names)) == len(names) and set(ALIASES.values()) <= set(names)
    assert not set(ALIASES) & set(names)


def class_bodies() -> dict[str, ast.ClassDef]:
    rooms = ("objectives", "probes", "sources", "backbones/adapters", "training/optimizers", "engine/modes")
    files = [ROOT / "diffpref" / "training" / "groups.py", ROOT / "diffpref" / "backbones" / "times.py"]
    files += [file for room in rooms for file in (ROOT / "diffpref" / room).glob("*.py")]
    trees = [ast.parse(file.read_text(encoding="utf-8")) for file in files]
    return {node.name: node for tree in trees for node in ast.walk(tree) if isinstance(node, ast.ClassDef)}


def test_every_field_says_what_it_is() -> None:
    bodies, silent = class_bodies(), set()
    for cls in (*(cls for name, cls in GROUPS.items() if name not in CHOICES), *CHOSEN):
        body = bodies[cls.__name__].body
        for node, after in zip(body, [*body[1:], None], strict=True):
            documented = isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant)
            kept = isinstance(node, ast.AnnAssign) and not ast.unparse(node.annotation).startswith("ClassVar")
            if kept and isinstance(node.target, ast.Name) and not documented:
                silent.add(node.target.id)
    assert silent <= set(DIFFUSERS.split())


class Reads(ast.NodeVisitor):
    """The (group, field) pairs that code reads, through `config.group` and through names bound to a group.

    A getattr by a string, as range checks and reports do, does not count: it uses every field and none."""

    def __init__(self) -> None:
        self.found: set[tuple[str, str]] = set()
        self.bound: dict[str, str] = {}

    def group_of(self, node: ast.expr | None) -> str | None:
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            own = self.bound.get(f"self.{node.attr}") if node.value.id == "self" else None
            return own or (node.attr if node.attr in GROUPS else None)
        return self.bound.get(node.id) if isinstance(node, ast.Name) else None

    def visit_ClassDef(self, node: ast.ClassDef) -> None:
        outer = dict(self.bound)
        for field in node.body:
            for group, cls in GROUPS.items():
                if isinstance(field, ast.AnnAssign) and ast.unparse(field.annotation) == cls.__name__:
                    self.bound[f"self.{ast.unparse(field.target)}"] = group
        self.generic_visit(node)
        self.bound = outer

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        outer = dict(self.bound)
        for argument in [*node.args.args, *node.args.kwonlyargs]:
            self.bound.pop(argument.arg, None)
            for group, cls in GROUPS.items():
                if argument.annotation is not None and ast.unparse(argument.annotation).strip("\"'") == cls.__name__:
                    self.bound[argument.arg] = group
        self.generic_visit(node)
        self.bound = outer

    def visit_Assign(self, node: ast.Assign) -> None:
        for target in node.targets:
            pairs = [(target, node.value)]
            if isinstance(target, ast.Tuple) and isinstance(node.value, ast.Tuple):
                pairs = list(zip(target.elts, node.value.elts, strict=True))
            for name, value in pairs:
                if isinstance(name, ast.Name) and (group := self.group_of(value)):
                    self.bound[name.id] = group
        self.generic_visit(node)

    def visit_Attribute(self, node: ast.Attribute) -> None:
        if isinstance(node.ctx, ast.Load) and (group := self.group_of(node.value)):
            self.found.add((group, node.attr))
        self.generic_visit(node)


def test_every_field_is_read_by_code_that_runs() -> None:
    found: set[tuple[str, str]] = set()
    for file in (ROOT / "diffpref").rglob("*.py"):
        if file.name != "groups.py":
            reads = Reads()
            reads.visit(ast.parse(file.read_text(encoding="utf-8")))
            found |= reads.found
    assert not {pair for pair in FIELDS if pair[0] not in CHOICES} - found, "fields that no code reads"
    read = {
        node.attr
        for file in (ROOT / "diffpref").rglob("*.py")
        for method in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(method, ast.FunctionDef) and method.name != "__post_init__"
        for node in ast.walk(method)
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load)
    }
    for cls in CHOSEN:
        assert {field.name for field in dataclasses.fields(cls)} <= read, cls
    assert found, "and the reader of the code sees something"


def test_the_reader_of_the_code_sees_reads_and_only_reads() -> None:
    reads = Reads()
    reads.visit(
        ast.parse(
            "def f(settings: Optimization, other: Path, config: TrainConfig):\n"
            "    run, data = config.run, config.data\n"
            "    print(settings.scale_lr, run.seed, config.adapter.rank, other.name)\n"
            "    getattr(data, 'crop')\n"
            "def g(run):\n"
            "    return run.output_dir\n"
        )
    )
    groups = {(group, name) for group, name in reads.found if (group, name) in FIELDS}
    assert groups == {("optimization", "scale_lr"), ("run", "seed"), ("adapter", "rank")}
