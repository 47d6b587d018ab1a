"""What vision-language judges are asked, and their replies as numbers: points of one picture, or the better of two."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

Mode = Literal["points", "pairs"]
# Not the 3 of "3,5", which may be three and a half.
_NUMBER = r"([-+]?\d+(?:\.\d+)?(?:[eE][-+]?\d+)?)(?![.,]?\d)"
# The colon after a name may follow a range "(1-5)" and stand among the marks of Markdown or JSON.
_COLON = r"[\"'*_]*\s*(?:\([^()\n]*\))?[\"'*_]*\s*[:=][\"'*_]*\s*[\"'*_]*"


@dataclass(frozen=True)
class Template:
    """One question and the form of its reply.

    Args:
        text: what is asked, with {prompt} where the prompt goes.
        dimensions: the names that the reply gives numbers to; of a pair's reply without numbers, none.
        bounds: the lowest and the highest number that is a reply.
    """

    text: str
    mode: Mode
    dimensions: tuple[str, ...] = ()
    bounds: tuple[float, float] = (float("-inf"), float("inf"))

    def question(self, prompt: str) -> str:
        """The text about one prompt."""
        return self.text.replace("{prompt}", prompt)

    def points(self, reply: str) -> Mapping[str, float] | None:
        """The number of every dimension, or None where one is missing, given twice or out of bounds."""
        reply = _after_thinking(reply)
        points: dict[str, float] = {}
        for name in self.dimensions:
            found = {float(number) for number in re.findall(rf"(?<!\w){re.escape(name)}{_COLON}{_NUMBER}", reply)}
            if len(found) != 1 or not self.bounds[0] <= (number := found.pop()) <= self.bounds[1]:
                return None
            points[name] = number
        return points

    def first_is_better(self, reply: str, dimension: str = "") -> float | None:
        """1 where the first picture is better, 0 where the second is, 0.5 where neither is, None where it is not said.

        Args:
            dimension: the only one that counts, of a template that has them; "" for their mean.
        """
        reply = _after_thinking(reply)
        if not self.dimensions:
            return _winner(reply)
        margin = 0.0
        for name in [dimension] if dimension else self.dimensions:
            first, second = (rf"[\s,;*_-]*Image\s*{place}{_COLON}{_NUMBER}" for place in (1, 2))
            pairs = re.findall(rf"(?<!\w){re.escape(name)}{_COLON}{first}{second}", reply)
            found = {(float(one), float(two)) for one, two in pairs}
            if len(found) != 1 or not all(self.bounds[0] <= number <= self.bounds[1] for number in next(iter(found))):
                return None
            one, two = found.pop()
            margin += one - two
        return 0.5 if abs(margin) < 1e-9 else float(margin > 0)


def _after_thinking(reply: str) -> str:
    return reply.rpartition("</think>")[2]


def _winner(reply: str) -> float | None:
    """From a JSON object's "winner", or from the sentences of UnifiedReward's first version ("Image 1 is better.")."""
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


_SCORES = ("Alignment Score", "Coherence Score", "Style Score")
TEMPLATES: Mapping[str, Template] = {
    "unified_reward_points": Template(
        "You are presented with a generated image and its associated text caption. Your task is to analyze the image "
        "across multiple dimensions in relation to the caption. Specifically:\n"
        "Provide overall assessments for the image along the following axes (each rated from 1 to 5):\n"
        "- Alignment Score: How well the image matches the caption in terms of content.\n"
        "- Coherence Score: How logically consistent the image is (absence of visual glitches, object distortions, "
        "etc.).\n"
        "- Style Score: How aesthetically appealing the image looks, regardless of caption accuracy.\n\n"
        "Output your evaluation using the format below:\n\n"
        "Alignment Score (1-5): X\nCoherence Score (1-5): Y\nStyle Score (1-5): Z\n\n"
        "Your task is provided as follows:\n"
        "Text Caption: [{prompt}]",
        "points",
        _SCORES,
        (1, 5),
    ),
    "unified_reward_pairs": Template(
        "You are presented with two generated images (Image 1 and Image 2) along with a shared text caption. Your task "
        "is to comparatively evaluate the two images across three specific dimensions:\n\n"
        "- Alignment Score: How well each image matches the caption in terms of content.\n"
        "- Coherence Score: How logically consistent and visually coherent each image is (absence of visual glitches, "
        "distorted objects, etc.).\n"
        "- Style Score: How aesthetically appealing each image is, regardless of caption accuracy.\n\n"
        "For each dimension, you must assign a relative score to Image 1 and Image 2, such that:\n"
        "- Each score is a float between 0 and 1 (inclusive).\n"
        "- The scores for Image 1 and Image 2 must sum to exactly 1.0 for each dimension.\n"
        "- The higher the score, the better that image is in the corresponding dimension *relative to the other*.\n\n"
        "This format emphasizes comparative quality rather than absolute evaluation.\n\n"
        "Please provide your evaluation in the format below:\n\n"
        "Alignment Score:\n Image 1: X\n Image 2: Y\n\n"
        "Coherence Score:\n Image 1: X\n Image 2: Y\n\n"
        "Style Score:\n Image 1: X\n Image 2: Y\n\n"
        "Your task is provided as follows:\n"
        "Text Caption: [{prompt}]",
        "pairs",
        _SCORES,
        (0, 1),
    ),
    "unified_reward_flex": Template(
        "## Identity\n"
        "You are a top-tier AI Image Content Evaluation Expert. Your task is to perform a hierarchical, "
        "multi-dimensional comparative analysis of Image 1 and Image 2 based on the provided Prompt.\n\n"
        "## Evaluation Framework\n\n"
        "### 1. Mandatory Starting Categories\n"
        "For every evaluation, you MUST address these three core areas, but you should **independently define 3-5 "
        "sub-dimensions** for each based on what makes the images distinct:\n"
        "- **A. Semantic Alignment & Accuracy**: Evaluate how well the images capture the prompt's subjects, actions, "
        "and constraints.\n"
        "- **B. Image Quality & Realism**: Evaluate technical execution, physical logic, and visual clarity.\n"
        "- **C. Aesthetics & Artistry**: Evaluate artistic appeal, color harmony, and compositional mastery.\n"
        "*Note: If the prompt involves unique traits, you are encouraged to add a personalized Category D.*\n\n"
        "### 2. Scoring & Reasoning Rules\n"
        "- **Dynamic Dimensions**: Do not rely on a fixed list. Choose sub-dimensions that best highlight the "
        "differences between the two images.\n"
        "- **Sum-of-10 Constraint**: For every sub-dimension, the scores for Image 1 and Image 2 MUST total exactly 10 "
        "(e.g., 8+2, 5+5).\n"
        "- **Evidence-Based Reasoning**: Provide professional, critical analysis for each score. Avoid generic praise; "
        "point out specific visual evidence.\n\n"
        "## Input Data\n"
        "**Prompt:** [{prompt}]\n\n"
        "**Content to be Evaluated:**\n[Image 1] \n[Image 2] \n\n"
        "## Output Format\n"
        "Output the results as a single, complete JSON object.\n\n"
        "```json\n"
        '{\n  "prompt": "[Original Prompt]",\n  "categories": [\n    {\n      "name": "[Category Name]",\n'
        '      "dims": [\n        {\n          "name": "[Custom Sub-dimension]",\n'
        '          "reason_1": "[Specific evidence]",\n          "reason_2": "[Specific evidence]",\n'
        '          "score_1": 0-10,\n          "score_2": 0-10\n        }\n      ],\n'
        '      "cat_reason": "[Category-level analysis]",\n      "cat_winner": "Image 1/2"\n    }\n  ],\n'
        '  "reason": "[Overall analysis]",\n  "winner": "Image 1/2"\n}\n',
        "pairs",
    ),
}
"""What the UnifiedReward models were trained to be asked, to the letter (CodeGoat24/UnifiedReward, MIT: the first two
of version 2.0 from inference_qwen/UnifiedReward-2.0-inference, the third from UnifiedReward-Flex)."""
