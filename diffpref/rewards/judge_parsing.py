"""Replies of vision-language judges as numbers: points of one image, or the better of two."""

import json
import re
from collections.abc import Mapping, Sequence

# Not the 3 of "3,5", which may be three and a half.
_NUMBER = r"([-+]?\d+(?:\.\d+)?(?:[eE][-+]?\d+)?)(?![.,]?\d)"
# The colon after a name may follow a range "(1-5)" and stand among the marks of Markdown or JSON.
_COLON = r"[\"'*_]*\s*(?:\([^()\n]*\))?[\"'*_]*\s*[:=][\"'*_]*\s*[\"'*_]*"


def points_in(reply: str, dimensions: Sequence[str], bounds: tuple[float, float]) -> Mapping[str, float] | None:
    """The number of every dimension, or None where one is missing, given twice or out of bounds."""
    points: dict[str, float] = {}
    for name in dimensions:
        numbers = {
            float(text) for text in re.findall(rf"(?<!\w){re.escape(name)}{_COLON}{_NUMBER}", after_thinking(reply))
        }
        if len(numbers) != 1 or not bounds[0] <= (number := numbers.pop()) <= bounds[1]:
            return None
        points[name] = number
    return points


def lead_of_first(reply: str, dimensions: Sequence[str], bounds: tuple[float, float]) -> float | None:
    """The first image's lead, summed over the dimensions; None where a number is missing or out of bounds."""
    lead = 0.0
    for name in dimensions:
        first, second = (rf"[\s,;*_-]*Image\s*{place}{_COLON}{_NUMBER}" for place in (1, 2))
        texts = re.findall(rf"(?<!\w){re.escape(name)}{_COLON}{first}{second}", after_thinking(reply))
        numbers = {(float(one), float(two)) for one, two in texts}
        if len(numbers) != 1 or not all(bounds[0] <= number <= bounds[1] for number in next(iter(numbers))):
            return None
        one, two = numbers.pop()
        lead += one - two
    return lead


def after_thinking(reply: str) -> str:
    """The reply without a reasoning model's thoughts."""
    return reply.rpartition("</think>")[2]


def winner_in(reply: str) -> float | None:
    """1 where the first image is better, 0 where the second is, 0.5 where neither is, None where it is not said.

    From a JSON object's "winner", or from the sentences of UnifiedReward's first version ("Image 1 is better.")."""
    reply = after_thinking(reply)
    said = {_verdict(winner) for winner in _winners(reply)}
    if not said:
        said = {2.0 - int(place) for place in re.findall(r"(?i)\bimage\s*([12])\s+is\s+better\b", reply)}
        said |= {0.5} if re.search(r"(?i)\b(?:both images are )?equally good\b", reply) else set()
    return said.pop() if len(said) == 1 else None


def _winners(reply: str) -> list[object]:
    start = reply.find("{")
    if start >= 0:
        try:
            whole = json.JSONDecoder().raw_decode(reply, start)[0]
        except json.JSONDecodeError:
            whole = None  # judges forget to escape quotes in their reasons
        if isinstance(whole, dict):
            return [whole.get("winner")]
    return re.findall(r'"winner"\s*:\s*"?([^",}\n]*)', reply)


def _verdict(winner: object) -> float | None:
    """The template's own "Image 1/2", copied, is no verdict."""
    text = str(winner).strip().lower()
    if match := re.fullmatch(r"(?:image\s*)?([12])", text):
        return 2.0 - int(match[1])
    return 0.5 if text in ("tie", "equal", "both", "draw", "neither") else None
