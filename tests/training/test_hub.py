"""A run on the hub: through the real client, up to a small server on this machine that stands for the hub."""

from collections.abc import Callable
from pathlib import Path

import huggingface_hub.constants
import pytest

from diffpref.files import hub
from tests.fake_hub import FakeHub, fake

__all__ = ["fake"]
Run = Callable[..., Path]


def test_a_finished_run_is_put_on_the_hub(run: Run, fake: FakeHub) -> None:
    folder = run(max_train_steps=1, checkpointing_steps=1, push_to_hub=True, hub_private_repo=True)
    assert [(made["name"], made["visibility"]) for made in fake.made] == [("run", "private")]
    assert {"README.md", "config.yaml", "done.json", "pytorch_lora_weights.safetensors", "report.html"} <= set(
        fake.files
    )
    assert not [name for name in fake.files if name.startswith(("checkpoint", "cache", "logs"))]
    assert all((folder / name).read_bytes() == content for name, content in fake.files.items())
    assert "Bearer hf_secret" in fake.tokens
    assert "hf_secret" not in (folder / "config.yaml").read_text() + (folder / "environment.json").read_text()


def test_the_page_may_have_a_name_of_its_own(run: Run, fake: FakeHub) -> None:
    run(max_train_steps=1, push_to_hub=True, hub_model_id="team/better")
    assert (fake.made[0]["organization"], fake.made[0]["name"]) == ("team", "better")
    assert fake.made[0].get("visibility") != "private"


def test_without_the_flag_nobody_is_asked(run: Run, fake: FakeHub) -> None:
    run(max_train_steps=1, hub_model_id="team/better")
    assert not fake.tokens


def test_no_token_is_said_before_the_start(run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("HF_TOKEN", raising=False)
    with pytest.raises(ValueError, match="push_to_hub needs a token .*`hf auth login`, or set HF_TOKEN"):
        run(push_to_hub=True)
    assert not (tmp_path / "run").exists()


def test_a_token_that_may_not_write_is_said_before_the_start(run: Run, fake: FakeHub, tmp_path: Path) -> None:
    fake.refuse |= {"/api/repos/create": 403, "/api/models/team/better": 404}
    with pytest.raises(ValueError, match="push_to_hub: team/better cannot be written on the hub .*the token's rights"):
        run(push_to_hub=True, hub_model_id="team/better")
    assert not (tmp_path / "run").exists()


def test_a_hub_that_is_away_at_the_start(run: Run, fake: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    hub._reachable.cache_clear()
    with pytest.raises(ValueError, match="push_to_hub: run cannot be written on the hub"):
        run(push_to_hub=True)
    hub._reachable.cache_clear()


def test_a_hub_that_refuses_the_upload_leaves_a_finished_run(run: Run, fake: FakeHub, tmp_path: Path) -> None:
    fake.refuse["/commit/"] = 400
    with pytest.raises(
        ValueError, match="run is complete, but could not be put on the hub .*diffpref push .*run --repo_id me/run"
    ):
        run(max_train_steps=1, push_to_hub=True)
    assert (tmp_path / "run" / "done.json").is_file()
