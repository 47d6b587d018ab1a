"""A name that looks like a path is never asked of the hub, and the message says what is missing."""

import socket
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from diffpref.backbones import Checkpoint
from diffpref.backbones.checkpoint import pipeline_class
from diffpref.data.preferences import read_preferences
from diffpref.data.prompts import read_prompts
from diffpref.files import hub
from diffpref.files.hub import may_be_hub_name

OPENERS: list[Callable[[str], object]] = [
    read_preferences,
    read_prompts,
    lambda name: pipeline_class(Checkpoint(name)),
]


@pytest.fixture(autouse=True)
def nobody_is_asked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("the network was asked")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", False)
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("opener", OPENERS, ids=["pairs", "prompts", "model"])
@pytest.mark.parametrize(
    ("name", "missing"),
    [
        ("data/pairs", "there is no folder {here}/data"),
        ("runs/one/two", "there is no folder {here}/runs"),
        ("mine/pairs", "there is no pairs in {here}/mine"),
        ("./pairs", "there is no pairs in {here}"),
        ("../absent/pairs", "there is no folder"),
        ("pairs", "there is no pairs in {here}"),
        ("mine/", "there is no"),
    ],
)
def test_a_missing_folder_is_named(opener: Callable[[str], object], name: str, missing: str, tmp_path: Path) -> None:
    if name != "mine/":
        (tmp_path / "mine").mkdir()
    with pytest.raises(ValueError) as problem:
        opener(name)
    assert name in str(problem.value) and missing.format(here=tmp_path) in str(problem.value)


@pytest.mark.filterwarnings("ignore:.*local_dir_use_symlinks")
@pytest.mark.parametrize("opener", OPENERS, ids=["pairs", "prompts", "model"])
def test_a_hub_that_takes_no_connection_is_not_asked_again(
    opener: Callable[[str], object], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[object] = []

    def refuse(*address: object, **_: object) -> None:
        asked.append(address)
        raise OSError("no route")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    hub._reachable.cache_clear()
    begin = time.monotonic()
    with pytest.raises(ValueError, match="someone/pairs"):
        opener("someone/pairs")
    assert len(asked) == 1 and time.monotonic() - begin < 5
    hub._reachable.cache_clear()


@pytest.mark.parametrize("name", ["stabilityai/stable-diffusion-xl-base-1.0", "someone/data", "Qwen/Qwen2-VL"])
def test_names_on_the_hub_stay_names(name: str) -> None:
    assert may_be_hub_name(name)
