"""Near-duplicate texts: the Jaccard similarity of word shingles, its candidates found by banded MinHash.

Broder, On the resemblance and containment of documents, 1997; bands as in Leskovec, Rajaraman and Ullman, Mining of
Massive Datasets, section 3.4. Candidates are verified, so that no text is called near that is not; how often a near one
is missed follows from `bands`. Axes: n texts, m shingles of all texts.
"""

import re
import unicodedata
from collections.abc import Iterator, Sequence
from copy import copy
from dataclasses import dataclass
from functools import cached_property
from hashlib import blake2b
from itertools import chain

import numpy as np
from jaxtyping import Float64, Int64, UInt64

PERMUTATIONS = 128
RECALL = 0.99
"""The least probability that a pair exactly at the threshold becomes a candidate."""

_CHUNK = 1024
_ROUNDING = 1e-9
# Scripts without spaces between words: every character is a word. Then runs of letters and digits with their accents,
# and single symbols such as emoji; punctuation, spaces and emoji's variation selectors separate.
_ALONE = "\u0e00-\u0e7f\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
_MARKS = "".join(chr(c) for c in range(0x300, 0xAC00) if unicodedata.category(chr(c))[0] == "M")
_WORDS = re.compile(
    rf"[{_ALONE}]|(?:(?![{_ALONE}_])[\w{_MARKS}])+"
    r"|[^\s\w!-/:-@\[-`{-~\xa1\xa7\xab\xb6\xb7\xbb\xbf\u2000-\u206f\u3000-\u303f\ufe00-\ufe0f\uff00-\uff0f\uff1a-\uff20]"
)


def words(text: str) -> list[str]:
    """The words of a text without case, punctuation and spacing; a text of punctuation alone is one word."""
    return _WORDS.findall(unicodedata.normalize("NFKC", text).casefold()) or [" ".join(text.split())]


@dataclass(frozen=True)
class Shingles:
    """The shingles of n texts as hashes: two neighbouring words, or the first or last word with the text's edge.

    So order counts ("a dog chasing a cat"), one word makes two shingles, and two words make three.
    """

    hashes: UInt64[np.ndarray, " m"]
    """Text by text; within a text in ascending order and each one once."""
    starts: Int64[np.ndarray, " bounds"]
    """Where each text's hashes start, and at the end their number: one more than texts."""

    def __len__(self) -> int:
        return len(self.starts) - 1

    @cached_property
    def sizes(self) -> Int64[np.ndarray, " n"]:
        """Shingles of each text, 2 or more unless words repeat."""
        return np.diff(self.starts)

    def of(self, i: int) -> UInt64[np.ndarray, " k"]:
        """The hashes of text i."""
        return self.hashes[self.starts[i] : self.starts[i + 1]]

    def jaccard(self, i: int, others: Int64[np.ndarray, " k"]) -> Float64[np.ndarray, " k"]:
        """Shared shingles over all shingles of text i and each of the others, in [0, 1]."""
        mine, sizes = self.of(i), self.sizes[others]
        ends = np.cumsum(sizes)
        theirs = self.hashes[np.repeat(self.starts[others] - (ends - sizes), sizes) + np.arange(sizes.sum())]
        found = mine[np.minimum(np.searchsorted(mine, theirs), len(mine) - 1)] == theirs
        shared = np.diff(np.concatenate([[0], np.cumsum(found)])[np.concatenate([[0], ends])])
        return shared / (len(mine) + sizes - shared)


def shingle(texts: Sequence[str]) -> Shingles:
    """The shingles of the texts; the same on every machine and in every process."""
    split = [words(text) for text in texts]
    ids: dict[str, int] = {"": 0}  # the edge of a text
    numbers = [[0, *(ids.setdefault(word, len(ids)) for word in line), 0] for line in split]
    digests = b"".join(blake2b(word.encode("utf-8", "surrogatepass"), digest_size=8).digest() for word in ids)
    known = np.frombuffer(digests, "<u8").astype(np.uint64)
    lengths = np.array([len(line) for line in numbers], np.int64)
    flat = known[np.fromiter(chain.from_iterable(numbers), np.int64, int(lengths.sum()))]
    left = np.ones(len(flat), bool)
    left[np.cumsum(lengths) - 1] = False  # a text's last edge begins no shingle
    places = np.flatnonzero(left)
    pairs = _mix(flat[places] * np.uint64(0x9E3779B97F4A7C15) + flat[places + 1])
    owners = np.repeat(np.arange(len(texts)), lengths)[places]
    order = np.lexsort((pairs, owners))
    pairs, owners = pairs[order], owners[order]
    fresh = np.ones(len(pairs), bool)
    fresh[1:] = (pairs[1:] != pairs[:-1]) | (owners[1:] != owners[:-1])
    counts = np.bincount(owners[fresh], minlength=len(texts))
    return Shingles(pairs[fresh], np.concatenate([[0], np.cumsum(counts)]).astype(np.int64))


def bands(threshold: float) -> tuple[int, int]:
    """(bands, rows a band): the longest bands with which a pair of Jaccard similarity `threshold` shares one with a
    probability of at least `RECALL`: 1 - (1 - threshold^rows)^bands. Below 0.036 even single rows fall short of it."""
    for rows in range(PERMUTATIONS, 1, -1):
        if 1 - (1 - threshold**rows) ** (PERMUTATIONS // rows) >= RECALL:
            return PERMUTATIONS // rows, rows
    return PERMUTATIONS, 1


def signatures(shingles: Shingles, start: int = 0, stop: int | None = None) -> UInt64[np.ndarray, "n 128"]:
    """MinHash signatures of the texts from `start` to `stop`: two texts agree in a share of their entries whose
    expectation is their Jaccard similarity."""
    stop = len(shingles) if stop is None else stop
    seeds = _mix(np.arange(1, PERMUTATIONS + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15))
    if start == stop:
        return np.empty((0, PERMUTATIONS), np.uint64)
    starts = shingles.starts[start : stop + 1]
    hashes = shingles.hashes[starts[0] : starts[-1]]
    permuted = _mix(hashes[:, None] ^ seeds)
    return np.minimum.reduceat(permuted, starts[:-1] - starts[0], axis=0)


def band_keys(shingles: Shingles, threshold: float) -> UInt64[np.ndarray, "n bands"]:
    """One hash of each band of each signature: texts that agree in any band are candidates."""
    count, rows = bands(threshold)
    keys = np.empty((len(shingles), count), np.uint64)
    for start in range(0, len(shingles), _CHUNK):
        stop = min(start + _CHUNK, len(shingles))
        signature = signatures(shingles, start, stop)[:, : count * rows].reshape(-1, count, rows)
        key = np.zeros((stop - start, count), np.uint64)
        for row in range(rows):
            key = _mix(key ^ signature[:, :, row])
        keys[start:stop] = key
    return keys


class NearIndex:
    """Finds among the texts that were added the one that a text is near to."""

    def __init__(self, shingles: Shingles, threshold: float) -> None:
        """Args: threshold: the least Jaccard similarity that is near, in (0, 1]."""
        self.shingles, self.threshold = shingles, threshold
        keys = band_keys(shingles, threshold)
        # Only keys that occur twice can ever meet; each gets a small number, the others get -1.
        self._groups = np.full(keys.shape, -1, np.int64)
        for band in range(keys.shape[1]):
            _, inverse, counts = np.unique(keys[:, band], return_inverse=True, return_counts=True)
            self._groups[:, band] = np.where(counts[inverse] > 1, inverse * keys.shape[1] + band, -1)
        self._members: dict[int, list[int]] = {}

    def empty_copy(self) -> "NearIndex":
        """An index of the same texts to which none was added."""
        other = copy(self)
        other._members = {}
        return other

    def add(self, i: int) -> None:
        for group in self._of(i):
            self._members.setdefault(group, []).append(i)

    def nearest(self, i: int) -> tuple[int, float] | None:
        """The most similar added text and its Jaccard similarity, of equals the lowest; None where none is near."""
        found = {j for group in self._of(i) for j in self._members.get(group, ())} - {i}
        if not found:
            return None
        candidates = np.array(sorted(found), np.int64)
        sizes, mine = self.shingles.sizes[candidates], int(self.shingles.sizes[i])
        # Shared over all is at most the smaller over the larger.
        candidates = candidates[np.minimum(sizes, mine) >= self.threshold * np.maximum(sizes, mine) - _ROUNDING]
        similarity = self.shingles.jaccard(i, candidates)
        if not len(candidates) or similarity.max() < self.threshold - _ROUNDING:
            return None
        best = int(similarity.argmax())
        return int(candidates[best]), float(similarity[best])

    def _of(self, i: int) -> Iterator[int]:
        return (group for group in self._groups[i].tolist() if group >= 0)


def _mix(x: np.ndarray) -> np.ndarray:
    """A bijection of 64-bit words that flips every bit with every other (the finaliser of splitmix64, Steele, Lea and
    Flood, Fast splittable pseudorandom number generators, 2014)."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
