"""The batches of a window as rows: one candidate each, so that micro-batches may be cut anywhere."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float
from torch import Tensor

from diffpref.backbones.prompts import concatenate
from diffpref.types import Probe


@dataclass(frozen=True)
class Part:
    """One batch of a window: where its candidates are compared, and how good each is."""

    probe: Probe
    scores: Float[Tensor, "b k"]
    keys: tuple[str, ...] = ()
    """A name for each of the b * k candidates; equal names are one picture at one t under one prompt. Empty: no two."""


@dataclass(frozen=True)
class Component:
    """Groups whose coefficients are known together: (part, group) pairs, and the rows that they hold."""

    groups: tuple[tuple[int, int], ...]
    rows: tuple[int, ...]


@dataclass(frozen=True)
class Block:
    """The parts whose reference is evaluated together; a row is a candidate that runs once, in any number of groups."""

    parts: Sequence[Part]

    @cached_property
    def places(self) -> tuple[tuple[tuple[int, ...], ...], ...]:
        """The row of each candidate: places[part][group][candidate]."""
        known: dict[object, int] = {}
        found = []
        for number, part in enumerate(self.parts):
            b, k = part.scores.shape
            names = part.keys or [(number, place) for place in range(b * k)]
            rows = [known.setdefault(name, len(known)) for name in names]
            found.append(tuple(tuple(rows[group * k : (group + 1) * k]) for group in range(b)))
        return tuple(found)

    @cached_property
    def rows(self) -> tuple[tuple[int, int], ...]:
        """(part, place among its b * k candidates) where each row stands first."""
        first: dict[int, tuple[int, int]] = {}
        for number, groups in enumerate(self.places):
            flat = [row for group in groups for row in group]
            for place, row in enumerate(flat):
                first.setdefault(row, (number, place))
        return tuple(first[row] for row in range(len(first)))

    def probe(self, rows: Sequence[int]) -> Probe:
        """The probe of some rows, as groups of one candidate."""
        by_part: dict[int, list[int]] = {}
        for row in rows:
            part, place = self.rows[row]
            by_part.setdefault(part, []).append(place)
        order = [row for number in by_part for row in rows if self.rows[row][0] == number]
        assert order == list(rows), "rows are asked for part by part"
        pieces = [_take(self.parts[number].probe, places) for number, places in by_part.items()]
        if len(pieces) == 1:
            return pieces[0]
        return Probe(
            torch.cat([piece.x_t for piece in pieces]),
            torch.cat([piece.target for piece in pieces]),
            torch.cat([piece.t for piece in pieces]),
            torch.cat([piece.weight for piece in pieces]),
            concatenate([piece.cond for piece in pieces]),
        )

    def components(self, *, separable: bool) -> list[Component]:
        """The groups in sets that share no row; all groups of a part together where its losses depend on each other."""
        owner: dict[int, int] = {}
        sets: dict[int, list[tuple[int, int]]] = {}
        for number, groups in enumerate(self.places):
            units = [(place,) for place in range(len(groups))] if separable else [tuple(range(len(groups)))]
            for unit in units:
                rows = {row for group in unit for row in groups[group]}
                joined = sorted({owner[row] for row in rows if row in owner})
                target = joined[0] if joined else max(sets, default=-1) + 1
                members = sets.setdefault(target, [])
                for other in joined[1:]:
                    members.extend(sets.pop(other))
                    owner.update({row: target for row, set_of in owner.items() if set_of == other})
                members.extend((number, group) for group in unit)
                owner.update(dict.fromkeys(rows, target))
        found = []
        for members in sets.values():
            members.sort()
            rows = sorted({row for part, group in members for row in self.places[part][group]})
            found.append(Component(tuple(members), tuple(rows)))
        return found


def _take(probe: Probe, places: Sequence[int]) -> Probe:
    k = probe.x_t.shape[1]
    groups = [place // k for place in places]
    cond: Mapping[str, Tensor] = {name: at(value, groups) for name, value in probe.cond.items()}
    x_t, target = (at(tensor.flatten(0, 1), places)[:, None] for tensor in (probe.x_t, probe.target))
    return Probe(x_t, target, at(probe.t, groups), at(probe.weight, groups), cond)


def at(values: Tensor, places: Sequence[int]) -> Tensor:
    """The entries along the first axis at places that the host knows.

    A list as an index becomes a tensor that travels to the device while the host waits. A run of places is a slice, and
    others are put together on the device."""
    first = places[0]
    if list(places) == list(range(first, first + len(places))):
        return values[first : first + len(places)]
    return torch.stack([values[place] for place in places])


def chunks(rows: Sequence[int], size: int) -> list[Sequence[int]]:
    """The rows in runs of at most `size`."""
    return [rows[start : start + size] for start in range(0, len(rows), size)]
