"""The questions that published judges were trained to be asked, to the letter."""

from collections.abc import Mapping

from diffpref.rewards.judge_templates import PairsTemplate, PointsTemplate

SCORES = ("Alignment Score", "Coherence Score", "Style Score")
TEMPLATES: Mapping[str, PointsTemplate | PairsTemplate] = {
    "unified_reward_points": PointsTemplate(
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
        SCORES,
        (1, 5),
    ),
    "unified_reward_pairs": PairsTemplate(
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
        SCORES,
        (0, 1),
    ),
    "unified_reward_flex": PairsTemplate(
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
    ),
}
"""What the UnifiedReward models were trained to be asked, to the letter (CodeGoat24/UnifiedReward, MIT: the first two
of version 2.0 from inference_qwen/UnifiedReward-2.0-inference, the third from UnifiedReward-Flex)."""
