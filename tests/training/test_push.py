"""`diffpref push`: through the real client, up to a small server on this machine that stands for the hub."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard

from diffpref.cli import main
from tests.fake_hub import FakeHub, fake

__all__ = ["fake"]
WRITES = {"auth": {"accessToken": {"role": "write"}}}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """The place of one finished run, once it is trained."""
    return []


@pytest.fixture
def done(run: Callable[..., Path], finished: list[Path], tmp_path: Path, tmp_path_factory: Any) -> Path:
    """A copy of a finished run."""
    if not finished:
        more = {"validation_prompts": ["red cat"], "validation_steps": 1, "checkpointing_steps": 1}
        finished.append(tmp_path_factory.mktemp("kept") / "mine")
        shutil.copytree(run(max_train_steps=1, **more), finished[0])
    return Path(shutil.copytree(finished[0], tmp_path / "mine"))


def test_the_run_goes_up_with_its_card(done: Path, fake: FakeHub, capsys: pytest.CaptureFixture[str]) -> None:
    fake.account, fake.licences = WRITES, {"owner/base": "openrail++"}
    card = ModelCard.load(done / "README.md")
    card.data.base_model = "owner/base"  # type: ignore[attr-defined]
    card.save(done / "README.md")
    assert main(["push", str(done), "--repo-id", "team/better", "--private"]) == 0
    assert "on the hub: " in capsys.readouterr().out and fake.made[0]["visibility"] == "private"
    assert {"pytorch_lora_weights.safetensors", "report.html", "metrics.jsonl", "samples/step-000001.png"} <= set(
        fake.files
    )
    assert not [name for name in fake.files if name.startswith(("checkpoint", "cache", "logs"))]
    text = fake.files["README.md"].decode()
    up = ModelCard(text)
    assert up.data.license == "openrail++"  # type: ignore[attr-defined]
    assert 'folder = "team/better"  #' in text and "| pairs that are ranked right | 0.5 |" in text
    assert main(["push", str(done), "--repo-id", "team/better", "--license", "mit"]) == 0
    text = fake.files["README.md"].decode()
    assert text.count("## Measured") == 1 and "license: mit" in text


def test_a_dry_run_lists_what_would_go_up_and_asks_nobody(
    done: Path, fake: FakeHub, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {path: path.read_bytes() for path in done.rglob("*") if path.is_file()}
    assert main(["push", str(done), "--dry-run"]) == 0
    listed = capsys.readouterr().out
    up, _, left = listed.partition("would stay here")
    assert not fake.tokens and {path: path.read_bytes() for path in before} == before
    assert main(["push", str(done)]) == 0
    assert all(f"  {name}\n" in up for name in fake.files) and up.count("\n") == len(fake.files) + 1
    assert "checkpoint-1/" in left and "checkpoint" not in up


@pytest.mark.parametrize(
    ("account", "said"),
    [
        ({"auth": {"accessToken": {"role": "read"}}}, "the token may read, not write"),
        (
            {
                "auth": {
                    "accessToken": {
                        "role": "fineGrained",
                        "fineGrained": {"scoped": [{"permissions": ["repo.content.read"]}]},
                    }
                }
            },
            "the token may read, not write",
        ),
    ],
)
def test_a_token_that_may_not_write_is_said_before_the_upload(
    done: Path, fake: FakeHub, account: dict[str, Any], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    fake.account = account
    assert main(["push", str(done)]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert f"diffpref push: {said}" in line and not fake.made and not fake.files


def test_what_cannot_be_pushed(
    done: Path, fake: FakeHub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["push", str(tmp_path)]) == 1
    assert "is no run: name an output directory" in capsys.readouterr().err
    fake.refuse["/api/repos/create"] = 403
    fake.refuse["/api/models/"] = 404
    assert main(["push", str(done), "--repo-id", "team/better"]) == 1
    assert "team/better cannot be written on the hub" in capsys.readouterr().err
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    assert main(["push", str(done)]) == 1
    assert "diffpref push needs a token that may write: run `hf auth login`" in capsys.readouterr().err
    (done / "done.json").unlink()
    assert main(["push", str(done), "--dry-run"]) == 1
    assert "holds no finished run" in capsys.readouterr().err
    assert not fake.files
