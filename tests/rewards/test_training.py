"""A small CLIP of random weights learns which picture is brighter: the loop, its resume, LoRA, and what is refused."""

import io
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import datasets
import pytest
import torch
import yaml
from accelerate.state import AcceleratorState
from PIL import Image
from safetensors.torch import load_file
from transformers import CLIPConfig, CLIPModel, CLIPTextConfig, CLIPTokenizer, CLIPVisionConfig

from diffpref.data.decode import decode
from diffpref.rewards import find_reward
from diffpref.rewards.clip_hf import load_model, load_processor
from diffpref.rewards.training.command import main
from diffpref.rewards.training.config import Pairs, Tuning
from diffpref.rewards.training.data import order, read_pairs, total_weight
from diffpref.rewards.training.loop import train
from diffpref.rewards.training.model import PairScorer, choose_trained, save_adapter, save_reward
from diffpref.rewards.training.settings import from_mapping, from_yaml, to_mapping

ROOT = Path(__file__).parents[2]
SIZE = 16


def png(level: int, size: tuple[int, int] = (SIZE, SIZE)) -> bytes:
    stream = io.BytesIO()
    # Noise, so that no two pictures are the same.
    noise = Image.effect_noise(size, 30).point(lambda v: min(255, max(0, v - 128 + level)))
    noise.convert("RGB").save(stream, "PNG")
    return stream.getvalue()


@pytest.fixture(autouse=True)
def on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bit for bit is promised on the CPU."""
    monkeypatch.setenv("ACCELERATE_USE_CPU", "1")


@pytest.fixture(scope="session")
def small_clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clip")
    tokenizer = CLIPTokenizer.from_pretrained(ROOT / "assets" / "tiny-sdxl" / "tokenizer")
    ends = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")}
    shape = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = CLIPTextConfig(vocab_size=len(tokenizer), max_position_embeddings=24, **shape, **ends)
    vision = CLIPVisionConfig(image_size=SIZE, patch_size=8, **shape)
    config = CLIPConfig(text_config=text.to_dict(), vision_config=vision.to_dict(), projection_dim=8)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        CLIPModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pick-a-Pic's columns: 12 pairs of 8 prompts, the brighter picture preferred; two are ties."""
    path = tmp_path_factory.mktemp("pairs") / "pairs.parquet"
    rows = []
    for i in range(12):
        high, low = png(170 + i), png(60 + 2 * i, (24, 17) if i == 3 else (SIZE, SIZE))
        swap, tie = i % 2, i in (4, 9)
        label = 0.5 if tie else float(1 - swap)
        pair = [low, high] if swap else [high, low]
        prompt = f"thing {max(0, i - 4)}"
        rows.append({"caption": prompt, "jpg_0": pair[0], "jpg_1": pair[1], "label_0": label, "label_1": 1 - label})
    datasets.Dataset.from_list(rows).to_parquet(path)
    return path


@pytest.fixture
def run(small_clip: Path, pairs: Path, tmp_path: Path) -> Callable[..., Path]:
    """A short run in silence; returns the output directory."""

    def go(name: str = "run", **changes: object) -> Path:
        AcceleratorState._reset_state(reset_partial_state=True)
        values: dict[str, object] = {
            "pretrained_model_name_or_path": str(small_clip),
            "dataset_name": str(pairs),
            "output_dir": str(tmp_path / name),
            "learning_rate": 3e-3,
            "train_batch_size": 4,
            "max_train_steps": 4,
            "logging_steps": 1,
        }
        return train(from_mapping(values | changes, "test"), say=lambda line: None)

    return go


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model" / "model.safetensors")


def metrics(folder: Path) -> list[dict[str, float]]:
    timed = {"seconds_per_step", "peak_memory_gib"}
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key not in timed} for line in lines]


def test_scores_are_those_of_transformers_and_of_the_reward(small_clip: Path, pairs: Path) -> None:
    """The training sees what CLIPModel.forward computes, and what the PickScore reward says of the same pictures."""
    clip, _ = load_model(str(small_clip))
    processor = load_processor(str(small_clip), clip.config)
    data = read_pairs(Pairs(), str(pairs), "train", None)
    batch = data.batch([3, 0, 7], processor)
    with torch.no_grad():
        scores = PairScorer(clip)(batch.pixels, batch.ids)
        out = clip(input_ids=batch.ids, pixel_values=batch.pixels.flatten(0, 1))
    theirs = torch.stack([out.logits_per_image.view(3, 2, 3)[i, :, i] for i in range(3)])
    torch.testing.assert_close(scores, theirs, atol=1e-4, rtol=1e-4)
    rows = [data.pairs[i] for i in (3, 0, 7)]
    reward = find_reward("pickscore", settings={"checkpoint": str(small_clip), "processor": ""})
    said = reward([decode(p) for row in rows for p in row.images], [row.prompt for row in rows for _ in "ab"])
    torch.testing.assert_close(scores.flatten(), said, atol=1e-4, rtol=1e-4)


def test_labels_weights_and_order(pairs: Path) -> None:
    data = read_pairs(Pairs(), str(pairs), "train", None)
    assert data.labels[[0, 1, 4, 9]].tolist() == [[1, 0], [0, 1], [0.5, 0.5], [0.5, 0.5]]
    torch.testing.assert_close(data.weights, torch.tensor([0.2] * 5 + [1.0] * 7, dtype=torch.float64))
    one = order(3, 12, range(3), size=4, accumulation=1, rank=0, processes=1)
    assert sorted(sum(one, [])) == list(range(12)), "an epoch is a permutation"
    shared = [order(3, 12, range(3), size=1, accumulation=2, rank=rank, processes=2) for rank in (0, 1)]
    for step in range(3):
        parts = [shared[rank][2 * step + part] for part in (0, 1) for rank in (0, 1)]
        assert sum(parts, []) == one[step], "the same pairs, however they are shared"
        assert total_weight(data, 3, step, 4) == pytest.approx(sum(data.weights[i].item() for i in one[step]))
    assert order(3, 12, range(2, 3), size=4, accumulation=1, rank=0, processes=1) == one[2:]


def test_it_learns_and_leaves_a_reward(run, pairs: Path) -> None:
    folder = run(
        max_train_steps=30, logging_steps=5, validation_dataset_name=str(pairs), validation_steps=10, decay_vectors=True
    )
    lines = metrics(folder)
    losses = [line["loss_per_pair"] for line in lines if "loss_per_pair" in line]
    assert len(losses) == 6 and losses[-1] < 0.5 * losses[0]
    held_out = {line["step"]: line["validation/accuracy"] for line in lines if "validation/accuracy" in line}
    assert list(held_out) == [0, 10, 20, 30] and held_out[30] == 1.0
    reward = find_reward(str(folder / "reward.yaml"))
    bright, dark = (Image.open(io.BytesIO(png(level))) for level in (190, 50))
    scores = reward([bright, dark], ["thing 5", "thing 5"])
    assert scores[0] > scores[1] and reward.pair_logit(scores[:1], scores[1:]).item() > 0
    assert from_yaml(folder / "config.yaml") == from_mapping(to_mapping(from_yaml(folder / "config.yaml")), "again")
    assert "versions" in json.loads((folder / "environment.json").read_text())
    page = (folder / "report.html").read_text()
    assert "100.0%" in page and "Accuracy without ties" in page and "learning_rate: 0.003" in page


def test_the_loss_of_a_step_is_the_published_one(run, small_clip: Path, pairs: Path) -> None:
    """The first logged loss, from the base model's own scores."""
    clip, _ = load_model(str(small_clip))
    data = read_pairs(Pairs(), str(pairs), "train", None)
    rows = order(0, 12, range(1), size=4, accumulation=1, rank=0, processes=1)[0]
    batch = data.batch(rows, load_processor(str(small_clip), clip.config))
    with torch.no_grad():
        scores = PairScorer(clip)(batch.pixels, batch.ids).double()
    p = scores.softmax(1)
    nats = -(batch.labels * p.log()).sum(1) + torch.where(batch.labels[:, 0] == 0.5, torch.tensor(0.5).log(), 0.0)
    w = batch.weights.double()
    assert metrics(run("a"))[0]["loss"] == pytest.approx((w / w.sum() * nats).sum().item(), rel=1e-4)
    summed = -(batch.labels * p.log()).sum().item()
    assert metrics(run("b", loss="hps"))[0]["loss"] == pytest.approx(summed, rel=1e-4)


@pytest.mark.parametrize(
    "changes", [{}, {"adapter": "lora", "rank": 2, "lr_scheduler": "cosine"}], ids=["full", "lora"]
)
def test_a_resumed_run_is_the_straight_run(run, pairs: Path, changes: dict) -> None:
    """Bit for bit, though the checkpoint lies between two log lines and the best weights before it."""
    common = {"max_train_steps": 6, "logging_steps": 2, "validation_dataset_name": str(pairs), "validation_steps": 2}
    common |= {"checkpointing_steps": 3, **changes}
    straight = run("straight", **common)
    again = run("again", **common)
    (again / "metrics.jsonl").write_text("\n".join((again / "metrics.jsonl").read_text().splitlines()[:4]) + "\n")
    for left in ("checkpoint-6/weights.safetensors", "report.html", "model/model.safetensors"):
        (again / left).unlink()
    assert run("again", resume_from_checkpoint="checkpoint-3", **common) == again
    assert metrics(again) == metrics(straight)
    ours, theirs = weights(again), weights(straight)
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_accumulation_is_a_larger_batch(run) -> None:
    """The weights of a step are normalised over all its batches; float32 adds in another order, hence 1e-5."""
    # The large epsilon keeps Adam from blowing up gradients that are nothing but rounding.
    common = {"learning_rate": 1e-3, "adam_epsilon": 1e-3}
    one = weights(run("one", train_batch_size=4, **common))
    four = weights(run("four", train_batch_size=1, gradient_accumulation_steps=4, **common))
    for name in one:
        torch.testing.assert_close(one[name], four[name], atol=1e-5, rtol=1e-4)


# peft asks transformers by a name that is going away.
@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")
def test_lora_is_merged_and_kept(small_clip: Path, pairs: Path, tmp_path: Path) -> None:
    """Merged, attached anew by peft, and in memory: one set of scores."""
    from peft import PeftModel

    clip, _ = load_model(str(small_clip))
    processor = load_processor(str(small_clip), clip.config)
    batch = read_pairs(Pairs(), str(pairs), "train", None).batch([0, 1, 2], processor)
    before = PairScorer(clip)(batch.pixels, batch.ids)
    choose_trained(clip, Tuning(adapter="lora", rank=3), logit_scale=True, seed=0)
    trained = {name for name, p in clip.named_parameters() if p.requires_grad}
    assert "logit_scale" in trained and all("lora_" in name for name in trained - {"logit_scale"})
    assert torch.equal(PairScorer(clip)(batch.pixels, batch.ids), before), "at step 0 LoRA changes nothing"
    with torch.no_grad():
        for name, p in clip.named_parameters():
            if "lora_B" in name:
                p.normal_(0, 0.3, generator=torch.Generator().manual_seed(len(name)))
    with torch.no_grad():
        scores = PairScorer(clip)(batch.pixels, batch.ids)
    assert (scores - before).abs().max() > 0.1
    save_reward(clip, processor, tmp_path / "model")
    save_adapter(clip, tmp_path / "adapter")
    merged, _ = load_model(str(tmp_path / "model"))
    attached = PeftModel.from_pretrained(CLIPModel.from_pretrained(small_clip), tmp_path / "adapter").base_model.model
    with torch.no_grad():
        for other in (merged, attached):
            torch.testing.assert_close(PairScorer(other)(batch.pixels, batch.ids), scores, atol=1e-4, rtol=1e-4)
    assert torch.equal(PairScorer(clip)(batch.pixels, batch.ids), scores), "saving changes nothing"


def test_the_best_weights_are_kept(run, pairs: Path, tmp_path: Path) -> None:
    """Validated against the opposite labels, training makes it worse: the first validated weights stay."""
    table = datasets.Dataset.from_parquet(str(pairs))
    swapped = table.rename_columns({"label_0": "label_1", "label_1": "label_0"})
    swapped.to_parquet(tmp_path / "opposite.parquet")
    common = {"validation_dataset_name": str(tmp_path / "opposite.parquet"), "learning_rate": 1e-3}
    long = run("long", max_train_steps=12, validation_steps=2, **common)
    seen = {line["step"]: line["validation/accuracy"] for line in metrics(long) if "validation/accuracy" in line}
    best = max((step for step in seen if step), key=lambda step: (seen[step], step))
    assert best < 12 and seen[best] > seen[12], seen
    short = weights(run("short", max_train_steps=best, learning_rate=1e-3))
    assert all(torch.equal(value, short[name]) for name, value in weights(long).items())


def test_what_is_trained(run, small_clip: Path) -> None:
    base, after = (
        load_file(small_clip / "model.safetensors"),
        weights(run(trained_vision_layers=1, trained_text_layers=0, train_logit_scale=False)),
    )
    changed = {name for name in base if not torch.equal(base[name], after[name])}
    allowed = ("vision_model.encoder.layers.1.", "vision_model.post_layernorm.", "visual_projection.")
    assert changed and all(name.startswith(allowed) for name in changed)
    assert {name for name in base if name.startswith(allowed) and "k_proj.bias" not in name} == changed - {
        name for name in changed if "k_proj.bias" in name
    }


@pytest.mark.parametrize(("loss", "largest"), [("hps", 100.0), ("pickscore", float("inf"))])
def test_the_scale_is_clamped_for_hps(run, small_clip: Path, tmp_path: Path, loss: str, largest: float) -> None:
    model = CLIPModel.from_pretrained(small_clip)
    model.logit_scale.data.fill_(5.0)
    model.save_pretrained(tmp_path / "sharp")
    CLIPTokenizer.from_pretrained(small_clip).save_pretrained(tmp_path / "sharp")
    folder = run(pretrained_model_name_or_path=str(tmp_path / "sharp"), loss=loss, max_train_steps=1)
    scale = weights(folder)["logit_scale"].exp().item()
    assert scale == pytest.approx(100.0, rel=1e-6) if largest == 100 else scale > 140


def test_half_precision_towers(run) -> None:
    folder = run(mixed_precision="bf16", gradient_checkpointing=True, dataloader_num_workers=1, max_train_steps=2)
    assert all(value.dtype == torch.float32 for value in weights(folder).values())
    assert len(metrics(folder)) == 2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pretrained_model_name_or_path": ""}, "pretrained_model_name_or_path is empty"),
        ({"dataset_name": ""}, "dataset_name is empty"),
        ({"logging_steps": 0}, "logging_steps must be 1 or above, got 0"),
        ({"learning_rate": 0.0}, "learning_rate must be above 0"),
        ({"trained_text_layers": 3}, "trained_text_layers must be from 0 to the 2 layers that the tower has, got 3"),
        ({"trained_text_layers": 0, "trained_vision_layers": 0, "train_logit_scale": False}, "nothing is trained"),
        ({"columns": ["caption"]}, "columns must be written as NAME=COLUMN, like prompt=my_caption, got 'caption'"),
        ({"columns": ["prompt=a", "prompt=b"]}, r"columns names prompt twice \(a and b\): keep one"),
        ({"adapter": "lora", "rank": 0}, "rank must be 1 or above"),
        ({"adapter": "lora", "lora_target_modules": ["to_q"]}, r"no layer of the model ends in \['to_q'\]"),
        ({"labels": "scores", "loss": "hps", "resume_from_checkpoint": "checkpoint-9"}, "no such checkpoint"),
    ],
)
def test_bad_settings_are_named(run, tmp_path: Path, changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        run(**changes)
    assert not (tmp_path / "run").exists(), "a run that did not start leaves nothing"


def test_bad_models_and_data_are_named(run, small_clip: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="checkpoint '.*absent' "):
        run(pretrained_model_name_or_path=str(tmp_path / "absent"))
    CLIPModel.from_pretrained(small_clip).text_model.save_pretrained(tmp_path / "half")
    with pytest.raises(ValueError, match="half"):
        run(pretrained_model_name_or_path=str(tmp_path / "half"))
    columns = {"caption": ["a", "b"], "jpg_0": [png(9)] * 2, "jpg_1": [png(8)] * 2, "label_0": [0.5, 0.5]}
    datasets.Dataset.from_dict(columns).to_parquet(tmp_path / "ties.parquet")
    with pytest.raises(ValueError, match="all 2 pairs are ties"):
        run(dataset_name=str(tmp_path / "ties.parquet"))
    del columns["jpg_1"]
    datasets.Dataset.from_dict(columns).to_parquet(tmp_path / "column.parquet")
    with pytest.raises(ValueError, match="jpg_1"):
        run(dataset_name=str(tmp_path / "column.parquet"))
    columns |= {"jpg_1": [b"no picture"] * 2, "label_0": [1.0, 0.0]}
    datasets.Dataset.from_dict(columns).to_parquet(tmp_path / "broken.parquet")
    with pytest.raises(ValueError, match="broken.parquet row [01]: .*not an image.* `diffpref data validate`"):
        run(dataset_name=str(tmp_path / "broken.parquet"), train_batch_size=1)


def test_another_run_is_neither_overwritten_nor_continued(run) -> None:
    run(max_train_steps=1, checkpointing_steps=1)
    with pytest.raises(ValueError, match="holds another run.*--overwrite_output_dir"):
        run(max_train_steps=1)
    with pytest.raises(ValueError, match="belongs to another run: loss was 'pickscore', is 'hps'"):
        run(max_train_steps=1, loss="hps", resume_from_checkpoint="latest")
    folder = run(max_train_steps=1, overwrite_output_dir=True)
    assert not list(folder.glob("checkpoint-*"))


def test_the_command_line(small_clip: Path, pairs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A YAML file, flags over it, and the same names as fields with hyphens."""
    config = {"pretrained_model_name_or_path": str(small_clip), "dataset_name": "absent", "max_train_steps": 9}
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(config))
    flags = ["--config", str(tmp_path / "run.yaml"), "--dataset-name", str(pairs), "--max_train_steps=1"]
    flags += ["--overwrite_output_dir", "--output_dir", str(tmp_path / "out"), "--train_batch_size", "2"]
    assert main(["train", *flags]) == 0
    assert "reward.yaml names the reward" in capsys.readouterr().out
    written = from_yaml(tmp_path / "out" / "config.yaml")
    assert written.pairs.dataset_name == str(pairs) and written.optimization.max_train_steps == 1
    assert written.run.overwrite_output_dir
    (tmp_path / "run.yaml").write_text("learnig_rate: 1")
    with pytest.raises(ValueError, match="unknown key 'learnig_rate'. Perhaps you meant 'learning_rate'"):
        main(["train", *flags])


@pytest.mark.parametrize("name", ["tiny", "pickscore", "hps"])
def test_the_published_configs_are_read(name: str) -> None:
    config = from_yaml(ROOT / "configs" / "reward" / f"{name}.yaml")
    assert config.criterion.loss == ("hps" if name == "hps" else "pickscore")
    assert from_mapping(to_mapping(config), "again") == config


@pytest.mark.slow
@pytest.mark.parametrize("loss", ["pickscore", "hps"])
def test_two_processes(run, small_clip: Path, pairs: Path, tmp_path: Path, loss: str) -> None:
    """Two gloo processes of 2 pairs learn what one of 4 does (PickScore), or of half the rate's loss (HPSv2)."""
    common = {"max_train_steps": 3, "learning_rate": 1e-3, "loss": loss, "adam_epsilon": 1e-3, "logging_steps": 1}
    common |= {"validation_dataset_name": str(pairs), "validation_steps": 3}
    flags = {"pretrained_model_name_or_path": str(small_clip), "dataset_name": str(pairs), "train_batch_size": 2}
    flags |= {**common, "output_dir": str(tmp_path / "two")}
    line = [part for key, value in flags.items() for part in (f"--{key}", str(value))]
    start = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "--master_port=29531", "-m"]
    environment = {**os.environ, "ACCELERATE_USE_CPU": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*start, "diffpref.rewards.training", *line], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
    one = run("one", train_batch_size=4, **common)
    ours, theirs = metrics(tmp_path / "two"), metrics(one)
    assert [line["step"] for line in ours] == [line["step"] for line in theirs]
    if loss == "pickscore":
        for name, value in weights(one).items():
            torch.testing.assert_close(weights(tmp_path / "two")[name], value, atol=1e-5, rtol=1e-3)
    first = [line["loss"] for line in (ours[1], theirs[1])]
    assert first[0] == pytest.approx(first[1] / (2 if loss == "hps" else 1), rel=1e-4)
