"""Preferences to an encoded data set: every image and every unique prompt through the encoder once."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from diffpref.backbones import Encoder
from diffpref.backbones.prompts import split
from diffpref.data.decode import decode, encoded_bytes
from diffpref.data.framing import Framing, Told, check_posterior, to_square
from diffpref.data.rows import Preferences
from diffpref.files.disk import require_space
from diffpref.files.identity import content_key
from diffpref.files.store import TensorStore
from diffpref.run.precision import DTYPES


@dataclass(frozen=True)
class Group:
    """One row after encoding: keys into the store."""

    pictures: tuple[str, ...]
    mirrored: tuple[str, ...]
    prompt: str
    scores: tuple[float, ...]


@dataclass(frozen=True)
class EncodedPreferences:
    """Groups whose latents and prompts lie in a store; indexing decodes nothing and encodes nothing."""

    groups: Sequence[Group]
    store: TensorStore
    fingerprint: str
    """Names the data: equal for equal rows, images, encoder and framing."""
    sizes: Sequence[Told] = ()
    """Of each group, where the framing keeps them."""

    def __len__(self) -> int:
        return len(self.groups)

    def group(
        self, index: int, *, mirrored: bool | Sequence[bool], draw: torch.Generator | None = None
    ) -> tuple[Tensor, dict[str, Tensor], tuple[float, ...]]:
        """Latents "k *chw", the prompt's tensors and the scores of a group, as they are kept.

        Args:
            mirrored: all images, or each on its own.
            draw: gives each image a fresh draw of its posterior, in float32, where that is kept.
        """
        group = self.groups[index]
        each = [mirrored] * len(group.pictures) if isinstance(mirrored, bool) else mirrored
        keys = [group.mirrored[place] if flip else group.pictures[place] for place, flip in enumerate(each)]
        latents = torch.stack([self.store.get(key)["latent"] for key in keys])
        if draw is not None:
            std = torch.stack([self.store.get(key)["std"] for key in keys]).float()
            latents = latents.float() + std * torch.randn(std.shape, generator=draw)
        return latents, self.store.get(group.prompt), group.scores


def encode_preferences(
    preferences: Preferences,
    encoder: Encoder,
    store: TensorStore,
    framing: Framing,
    *,
    dtype: str,
    batch_size: int = 8,
    share: tuple[int, int] = (0, 1),
    report: Callable[[int, int], None] = lambda done, total: None,
) -> EncodedPreferences:
    """Fill the store with what is missing, and return the data set.

    Args:
        share: (rank, processes): this process encodes what is missing of its share of the keys. The caller must wait
            for the others and `store.refresh()` before it reads.
        report: called with (encoded, to encode) images.

    Raises:
        ValueError: an image that cannot be decoded, or a disk that is too small; names the row.
    """
    check_posterior(encoder, framing.posterior)
    groups, sizes, texts, todo = _keys(preferences, encoder.identity, store, framing, dtype)
    rank, processes = share
    # By the key, not by the place among the missing: another process may have written before this one looked.
    prompts = [key for key in store.missing(texts) if int(key[:8], 16) % processes == rank]
    encode_prompts({key: texts[key] for key in prompts}, encoder, store, dtype)
    own = [(key, place) for key, place in todo.items() if int(key[:8], 16) % processes == rank]
    for done, batch in _batches(own, batch_size):
        images = []
        for _, (index, place, offset, mirror) in batch:
            row = preferences[index]
            try:
                square = to_square(decode(row.images[place]), framing.resolution, offset)
            except ValueError as problem:
                raise ValueError(f"{row.where}, image {place}: {problem}") from None
            images.append(square.flip(-1) if mirror else square)
        # The draw from the autoencoder's posterior belongs to the image, not to the run.
        draws = [torch.Generator().manual_seed(int(key[:15], 16)) for key, _ in batch]
        encoded = framing.encode(encoder, torch.stack(images), draws, DTYPES[dtype])
        if done == 0:
            one = sum(tensor.numel() * tensor.element_size() for tensor in encoded[0].values())
            require_space(store.folder, 2 * one * len(own), "the latent cache")
        for (key, (index, place, _, _)), tensors in zip(batch, encoded, strict=True):
            if not all(bool(tensor.isfinite().all()) for tensor in tensors.values()):
                where = preferences[index].where
                raise ValueError(f"{where}, image {place}: its latent is not finite; use --cache_dtype float32.")
            store.add(key, tensors)
        report(done + len(batch), len(own))
    store.flush()
    digest = content_key(*(repr(group) for group in groups), *(repr(tuple(size)) for size in sizes))
    return EncodedPreferences(groups, store, digest, sizes)


Todo = dict[str, tuple[int, int, tuple[float, float], bool]]
"""Keys -> row, place in it, crop and mirroring. Places, not images, of which a large data set has more than memory."""


def _keys(
    preferences: Preferences, identity: str, store: TensorStore, framing: Framing, dtype: str
) -> tuple[list[Group], list[Told], dict[str, str], Todo]:
    """The groups as keys, their sizes where they are kept, each prompt by its key, and what is not in the store."""
    look = f"{framing.resolution}/{dtype}/{identity}"
    if framing.posterior != "kept":
        look += f"/posterior {framing.posterior}"
    groups: list[Group] = []
    sizes: list[Told] = []
    texts: dict[str, str] = {}
    todo: Todo = {}
    for index, row in enumerate(preferences):
        offset = framing.offset(row.where)
        if framing.sizes:
            sizes.append(framing.told(row.images[0], offset))
        keys: dict[bool, list[str]] = {False: [], True: []}
        for place, source in enumerate(row.images):
            data = encoded_bytes(source)
            for mirror in (False, True) if framing.flip else (False,):
                key = content_key(data, look, f"{offset}", f"mirrored {mirror}")
                keys[mirror].append(key)
                if key not in store:
                    todo.setdefault(key, (index, place, offset, mirror))
        prompt = content_key(row.prompt, dtype, identity)
        texts[prompt] = row.prompt
        groups.append(Group(tuple(keys[False]), tuple(keys[True]), prompt, row.scores))
    return groups, sizes, texts, todo


def _batches(items: Sequence, size: int) -> Iterator[tuple[int, Sequence]]:
    for start in range(0, len(items), size):
        yield start, items[start : start + size]


def encode_prompts(texts: dict[str, str], encoder: Encoder, store: TensorStore, dtype: str) -> None:
    """Put the tensors of each text into the store under its key, floating ones in dtype."""
    for _, batch in _batches(list(texts.items()), 16):
        encoded = split(encoder.encode_prompts([text for _, text in batch]))
        for (key, _), prompt in zip(batch, encoded, strict=True):
            store.add(key, {name: _compact(value, dtype) for name, value in prompt.items()})


def _compact(value: Tensor, dtype: str) -> Tensor:
    """The tensor in the cache's dtype; integers, which are labels, stay as they are: bfloat16 has no 999."""
    return value.to(DTYPES[dtype]) if value.is_floating_point() else value
