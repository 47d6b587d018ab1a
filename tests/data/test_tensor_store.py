"""The cache: what is flushed is found again by any process, what is not is all that a kill can cost."""

import os
from pathlib import Path

import pytest
import torch

from diffpref.files import store as cache
from diffpref.files.disk import require_space
from diffpref.files.identity import content_key
from diffpref.files.store import TensorStore
from diffpref.run.precision import DTYPES


def shards(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.safetensors"))


def test_add_flush_get_and_a_second_reader(tmp_path: Path) -> None:
    store = TensorStore(tmp_path / "deep" / "cache")
    tensors = {"latent": torch.randn(2, 3), "pooled": torch.arange(4).half()}
    store.add("a", tensors)
    assert "a" in store and "b" not in store and not shards(store.folder)
    store.flush()
    assert len(shards(store.folder)) == 1
    for reader in (store, TensorStore(store.folder)):
        assert "a" in reader and "b" not in reader
        found = reader.get("a")
        assert found.keys() == tensors.keys()
        for name, tensor in tensors.items():
            assert torch.equal(found[name], tensor) and found[name].dtype == tensor.dtype
        with pytest.raises(KeyError):
            reader.get("b")


def test_flush_of_nothing_writes_nothing(tmp_path: Path) -> None:
    store = TensorStore(tmp_path)
    store.flush()
    store.add("a", {"latent": torch.ones(1)})
    store.flush()
    store.flush()
    assert len(shards(tmp_path)) == 1


def test_what_is_added_is_a_copy(tmp_path: Path) -> None:
    store, tensor = TensorStore(tmp_path), torch.ones(1000, 4)
    store.add("a", {"latent": tensor[3]})
    tensor.zero_()
    store.flush()
    assert torch.equal(store.get("a")["latent"], torch.ones(4))
    assert shards(tmp_path)[0].stat().st_size < 1000, "the slice, not the batch that it is a view of"


def test_channels_last_latents_are_kept(tmp_path: Path) -> None:
    store = TensorStore(tmp_path)
    latents = torch.randn(2, 4, 3, 5).to(memory_format=torch.channels_last)
    assert not latents[1].is_contiguous()
    store.add("a", {"latent": latents[1]})
    store.flush()
    assert torch.equal(store.get("a")["latent"], latents[1])


def test_missing_keeps_the_order_and_counts_once(tmp_path: Path) -> None:
    store = TensorStore(tmp_path)
    store.add("b", {"latent": torch.ones(1)})
    assert store.missing(["c", "b", "a", "c"]) == ["c", "a"]
    assert store.missing(iter([])) == []


def test_a_key_that_begins_like_another_is_another(tmp_path: Path) -> None:
    store = TensorStore(tmp_path)
    store.add("ab", {"latent": torch.ones(1)})
    assert "a" not in store and "ab" in store


def test_two_writers_to_one_folder(tmp_path: Path) -> None:
    one, two = TensorStore(tmp_path), TensorStore(tmp_path)
    one.add("a", {"latent": torch.full((2,), 1.0)})
    two.add("b", {"latent": torch.full((2,), 2.0)})
    two.add("a", {"latent": torch.full((2,), 1.0)})
    one.flush()
    two.flush()
    assert "b" not in one
    for store in (one, two):
        store.refresh()
        assert [float(store.get(key)["latent"][0]) for key in ("a", "b")] == [1.0, 2.0]
    assert len(shards(tmp_path)) == 2


def test_a_shard_is_written_when_enough_bytes_are_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "SHARD_BYTES", 100)
    store = TensorStore(tmp_path)
    for index, expected in enumerate([0, 0, 1, 1, 1, 2]):
        store.add(str(index), {"latent": torch.zeros(5), "half": torch.zeros(10).half()})  # 40 bytes
        assert len(shards(tmp_path)) == expected
    assert not TensorStore(tmp_path).missing(map(str, range(6)))


def test_a_kill_costs_what_was_not_flushed_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    store = TensorStore(tmp_path)
    store.add("a", {"latent": torch.ones(2)})
    store.flush()
    store.add("b", {"latent": torch.ones(2)})
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(os, "replace", killed)
        store.flush()
    (tmp_path / ".0123.tmp").write_bytes(b"half a file")
    later = TensorStore(tmp_path)
    assert later.missing(["a", "b"]) == ["b"] and torch.equal(later.get("a")["latent"], torch.ones(2))
    later.add("b", {"latent": torch.zeros(2)})
    later.flush()
    assert not TensorStore(tmp_path).missing(["a", "b"])


@pytest.mark.parametrize("damage", ["cut", "empty", "text"])
def test_a_damaged_shard_is_named(tmp_path: Path, damage: str) -> None:
    store = TensorStore(tmp_path)
    store.add("a", {"latent": torch.ones(50)})
    store.flush()
    (shard,) = shards(tmp_path)
    content = shard.read_bytes()
    shard.unlink()
    shard.write_bytes({"cut": content[:-20], "empty": b"", "text": b"<html>not found</html>"}[damage])
    with pytest.raises(ValueError) as problem:
        TensorStore(tmp_path)
    assert str(shard) in str(problem.value) and "Delete it" in str(problem.value)
    shard.unlink()
    assert TensorStore(tmp_path).missing(["a"]) == ["a"]


def test_content_keys_are_stable_and_unambiguous() -> None:
    keys = [content_key(*parts) for parts in (("ab", "c"), ("a", "bc"), ("abc",), ("abc", ""), ("", "abc"), ())]
    assert len(set(keys)) == len(keys)
    assert content_key("é", b"\x00") == content_key("é".encode(), b"\x00")
    # sha256 of 8 bytes of length and the part: a changed rule would forget every cache there is.
    assert content_key("a") == "ae6121c88ba555f64c3d812123eb799d"
    assert all("/" not in key for key in keys), "the store separates key and name by a slash"


def test_space_is_asked_of_a_folder_that_does_not_exist_yet(tmp_path: Path) -> None:
    require_space(tmp_path / "not" / "yet", 1, "a test")
    with pytest.raises(ValueError, match=r"not/yet: a test needs about 1048576\.00 GiB.*--cache_dir"):
        require_space(tmp_path / "not" / "yet", 2**50, "a test")


@pytest.mark.parametrize("name", ["float16", "bfloat16", "float32"])
def test_dtype_names(name: str) -> None:
    assert str(DTYPES[name]) == f"torch.{name}"
