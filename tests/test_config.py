"""Settings: YAML and command line to frozen groups and back, errors that name key, file and rule, no idle field."""

import ast
import dataclasses
from pathlib import Path
from typing import Any

import pytest
import yaml

from diffpref.backbones.adapters import ADAPTERS
from diffpref.engine.modes import LOSS_MODES
from diffpref.objectives import OBJECTIVES
from diffpref.probes import PROBES
from diffpref.settings.axis import Axis
from diffpref.sources import SOURCES
from diffpref.training.config import ALIASES, TrainConfig
from diffpref.training.optimizers import OPTIMIZERS, Adafactor
from diffpref.training.settings import from_mapping, from_yaml, parse, to_mapping

ROOT = Path(__file__).parent.parent
CONFIGS = sorted(f for f in (ROOT / "configs").rglob("*.yaml") if f.parent.name not in ("label", "reward"))
TRAINING = [path for path in CONFIGS if path.parent.name != "accelerate"]
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


@pytest.fixture
def written(tmp_path: Path):
    def write(text: str) -> Path:
        path = tmp_path / "run.yaml"
        path.write_text(text, encoding="utf-8")
        return path

    return write


@pytest.mark.parametrize("path", TRAINING, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_every_config_in_the_repository_parses_and_survives_a_round_trip(path: Path, tmp_path: Path) -> None:
    config = from_yaml(path)
    again = tmp_path / "config.yaml"
    again.write_text(yaml.safe_dump(to_mapping(config), sort_keys=False, allow_unicode=True), encoding="utf-8")
    assert from_yaml(again) == config
    given = yaml.safe_load(path.read_text(encoding="utf-8"))
    method = path.stem.split("-")[0]
    assert given["objective"] == {"inpo": "dpo"}.get(method, method), "the file is named after its method"
    assert (given.get("probe") == "inversion") == (method in ("inpo", "smpo"))
    flat = to_mapping(config)
    assert all(flat[ALIASES.get(key, key)] == value for key, value in given.items()), "each key arrives unchanged"


def test_there_are_configs() -> None:
    assert {f"{path.parent.name}/{path.name}" for path in TRAINING} >= {"sdxl/dpo.yaml", "tiny-sdxl/dpo.yaml"}


def test_a_round_trip_keeps_every_kind_of_value() -> None:
    config = from_mapping(
        {
            "beta": 2500.5,
            "validation_prompts": ["a fox, at night", "naïve café"],
            "columns": ["prompt=my_caption"],
            "cache_dir": "/somewhere/else",
            "max_train_samples": 12,
            "random_flip": True,
            "mixed_precision": "bf16",
            "revision": "None",
        },
        "here",
    )
    assert config.data.cache_dir == Path("/somewhere/else") and config.data.max_train_samples == 12
    assert config.validation.validation_prompts == ("a fox, at night", "naïve café")
    text = yaml.safe_dump(to_mapping(config), allow_unicode=True)
    assert from_mapping(yaml.safe_load(text), "there") == config
    assert from_mapping(to_mapping(TrainConfig()), "defaults") == TrainConfig()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("learning_rate: 1e-5", {"learning_rate": 1e-5}),
        ("learning_rate: 1.0e-5", {"learning_rate": 1e-5}),
        ("beta: 5000", {"beta": 5000.0}),
        ("mixed_precision: no", {"mixed_precision": "no"}),
        ("mixed_precision: 'no'", {"mixed_precision": "no"}),
        ("max_train_samples: null", {"max_train_samples": None}),
        ("checkpoints_total_limit:", {"checkpoints_total_limit": None}),
        ("validation_prompts: [a, b]", {"validation_prompts": ["a", "b"]}),
        ("validation_prompts:\n  - é", {"validation_prompts": ["é"]}),
        ("validation_prompts: []", {"validation_prompts": []}),
        ("random_flip: yes", {"random_flip": True}),
        ("output_dir: runs/x", {"output_dir": "runs/x"}),
        ("beta_dpo: 2000", {"beta": 2000.0}),
        ("train_data_dir: pairs", {"dataset_name": "pairs"}),
        ("validation_prompt: [one]", {"validation_prompts": ["one"]}),
    ],
)
def test_yaml_values(written, text: str, expected: dict[str, Any]) -> None:
    flat = to_mapping(from_yaml(written(text)))
    for key, value in expected.items():
        assert flat[key] == value and type(flat[key]) is type(value)


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("learnig_rate: 1", ["unknown key 'learnig_rate'", "'learning_rate'"]),
        ("beta_dop: 1", ["unknown key 'beta_dop'", "'beta_dpo'"]),
        ("objectiv: dpo", ["unknown key 'objectiv'", "'objective'"]),
        ("qqqqqq: 1", ["unknown key 'qqqqqq'."]),
        ("7: 1", ["unknown key '7'."]),
        ("rank: many", ["rank must be a whole number, got 'many'"]),
        ("rank: 8.0", ["rank must be a whole number, got 8.0"]),
        ("rank: true", ["rank must be a whole number, got True"]),
        ("rank: null", ["rank must be a whole number, got None"]),
        ("max_train_samples: all", ["max_train_samples must be a whole number, got 'all'"]),
        ("learning_rate: fast", ["learning_rate must be a number, got 'fast'"]),
        ("learning_rate: true", ["learning_rate must be a number, got True"]),
        ("random_flip: 1", ["random_flip must be true or false, got 1"]),
        ("dataset_name: 5", ["dataset_name must be text, got 5"]),
        ("cache_dir: 5", ["cache_dir must be a path, got 5"]),
        ("validation_prompts: a fox", ["validation_prompts must be a list, got 'a fox'"]),
        ("validation_prompts: [1, 2]", ["validation_prompts must be a list of text, got [1, 2]"]),
        ("adapter: dora", ["adapter must be one of lora, full, or your own as", "got 'dora'"]),
        ("adapter: no", ["adapter must be one of lora, full, or your own as", "got False"]),
        ("adapter: [lora]", ["adapter must be one of lora, full"]),
        ("beta_dpo: big", ["beta_dpo must be a number"]),
        ("objective: ppo", ["objective must be one of dpo, smpo, rankdpo, d3po, ddo, or your own as", "got 'ppo'"]),
        ("gamma: 3", ["gamma belongs to objective: smpo, and this is objective: dpo. Set objective: smpo, or leave"]),
        ("method: ppo", ["method must be one of dpo, inpo, smpo, rankdpo, d3po, ddo, got 'ppo'"]),
        ("objective: [dpo]", ["objective must be one of", "got ['dpo']"]),
        ("beta: -1", ["beta must be above 0, got -1"]),
        ("beta: .nan", ["beta must be above 0, got nan"]),
        ("anchor: -0.5", ["anchor must be 0 or above, got -0.5"]),
        ("sft: -0.5", ["sft must be 0 or above, got -0.5"]),
        ("beta: 1\nbeta_dpo: 2", ["beta_dpo and beta are two names of one setting"]),
        ("- a\n- b", ["must hold `key: value` lines"]),
        ("", ["must hold `key: value` lines"]),
        ("a: [", ["is no valid YAML"]),
    ],
)
def test_errors_name_the_file_the_key_and_the_rule(written, text: str, parts: list[str]) -> None:
    path = written(text)
    with pytest.raises(ValueError) as problem:
        from_yaml(path)
    for part in [str(path), *parts]:
        assert part in str(problem.value)


def test_a_file_that_is_missing_or_in_another_encoding_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="absent.yaml: no such config file"):
        from_yaml(tmp_path / "absent.yaml")
    (tmp_path / "latin.yaml").write_bytes("output_dir: caf\xe9".encode("latin-1"))
    with pytest.raises(ValueError, match="latin.yaml is no valid YAML"):
        from_yaml(tmp_path / "latin.yaml")


def test_from_mapping_changes_the_given_keys_alone() -> None:
    base = from_mapping({"beta": 7, "rank": 3}, "base")
    changed = from_mapping({"rank": 4}, "change", base)
    assert changed == dataclasses.replace(base, adapter=dataclasses.replace(base.adapter, rank=4))
    assert base.adapter.rank == 3


def test_the_command_line_goes_over_the_file_wherever_config_stands(written) -> None:
    path = written("beta: 100\nsft: 1\nrank: 8\nvalidation_prompts: [x]\noptimizer: adafactor")
    for line in (
        ["--config", str(path), "--beta", "200", "--rank", "16"],
        ["--beta", "200", f"--config={path}", "--rank=16"],
        ["--beta_dpo", "200", "--rank", "16", "--config", str(path)],
    ):
        config = parse(line)
        assert (config.objective.beta, config.objective.sft, config.adapter.rank) == (200.0, 1.0, 16)
        assert config.optimizer == Adafactor() and config.validation.validation_prompts == ("x",)
    assert parse(["--config", str(path)]) == from_yaml(path)
    assert parse([]) == TrainConfig()


def test_flags_of_every_kind() -> None:
    config = parse(
        "--anchor 1.5 --learning_rate 1e-6 --random_flip True --mixed_precision no --cache_dir c --output-dir o"
        " --train_data_dir d --max_train_samples 5 --validation_prompts a b --resume_from_checkpoint None".split()
    )
    assert config.objective.anchor == 1.5 and config.optimization.learning_rate == 1e-6
    assert config.data.random_flip and config.run.mixed_precision == "no" and config.data.dataset_name == "d"
    assert (config.data.cache_dir, config.run.output_dir) == (Path("c"), Path("o"))
    assert config.data.max_train_samples == 5 and config.run.resume_from_checkpoint is None
    assert config.validation.validation_prompts == ("a", "b")


@pytest.mark.parametrize("alias", sorted(ALIASES))
@pytest.mark.parametrize("dashes", [False, True])
def test_aliases_are_flags_too(alias: str, dashes: bool) -> None:
    flag = alias.replace("_", "-") if dashes else alias
    assert parse([f"--{flag}", "3"]) == parse([f"--{flag}=3"]) == parse([f"--{ALIASES[alias]}", "3"]) != TrainConfig()


@pytest.mark.parametrize(
    ("line", "part"),
    [
        (["--rank", "x"], "--rank"),
        (["--objective", "smpo", "--gamma", "-5"], "gamma must be above 0, got -5.0"),
    ],
)
def test_a_wrong_command_line_exits_with_2(line: list[str], part: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        parse(line)
    assert stop.value.code == 2 and part in capsys.readouterr().err


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (["--betta", "1"], "the command line: unknown key 'betta'. Perhaps you meant 'beta'"),
        (["--gamma", "1"], "gamma belongs to objective: smpo"),
        (["--adapter", "dora"], "adapter must be one of lora, full, .*Perhaps you meant 'lora'"),
        (["--optimizer", "adafactor", "--adam_beta1", "0.5"], "adam_beta1 belongs to optimizer: adamw"),
    ],
)
def test_flags_have_the_messages_of_the_keys(line: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse(line)


@pytest.mark.parametrize("name", sorted(OBJECTIVES))
def test_every_objective_can_be_chosen_and_has_its_own_flags(name: str, written) -> None:
    assert parse(["--objective", name]) == from_yaml(written(f"objective: {name}"))
    config = parse(["--config", str(written(f"objective: {name}")), "--beta", "7"])
    assert type(config.objective) is OBJECTIVES[name] and config.objective.beta == 7
    assert from_mapping(to_mapping(config), "again") == config


@pytest.mark.parametrize(
    ("line", "objective", "probe"),
    [
        (["--objective", "inpo"], "dpo", "inversion"),
        (["--method", "inpo"], "dpo", "inversion"),
        (["--method", "smpo"], "smpo", "inversion"),
        (["--method", "d3po"], "d3po", "transition"),
    ],
)
def test_the_names_of_the_papers_methods_stand_for_their_choices(line: list[str], objective: str, probe: str) -> None:
    flat = to_mapping(parse(line))
    assert (flat["objective"], flat["probe"]) == (objective, probe)
    assert parse([*line, "--beta", "3"]).objective.beta == 3.0
    if "smpo" in line:
        assert (flat["renoise"], flat["average_estimates"]) == (1, True)


def test_an_objective_of_a_file_is_written_so_that_it_is_found_again(tmp_path: Path) -> None:
    address = "examples/add_an_objective.py:IPO"
    config = from_mapping({"objective": str(ROOT / address), "beta": 9}, "here")
    assert type(config.objective).__name__ == "IPO" and config.objective.beta == 9
    assert to_mapping(config)["objective"] == str(ROOT / address)
    assert from_mapping(to_mapping(config), "again") == config
    with pytest.raises(ValueError, match="here: objective .*must be a frozen dataclass"):
        from_mapping({"objective": "os.path:join"}, "here")


def test_config_without_a_file() -> None:
    with pytest.raises(ValueError, match="--config needs a YAML file"):
        parse(["--rank", "3", "--config"])


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


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--random_flip"], True),
        (["--random_flip", "--rank", "4"], True),
        (["--random-flip", "False"], False),
        (["--random_flip=true"], True),
    ],
)
def test_a_flag_may_stand_alone_as_in_the_diffusers_scripts(arguments: list[str], expected: bool) -> None:
    assert parse(arguments).data.random_flip is expected


def test_the_objective_is_a_flag_and_keeps_the_configs_fields(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("objective: dpo\nbeta: 123\n")
    assert parse(["--config", str(file), "--objective", "dpo"]).objective.beta == 123
    with pytest.raises(ValueError, match="objective must be one of"):
        parse(["--objective", "ppo"])
