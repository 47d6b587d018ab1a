"""The names of precisions in settings, as torch has them."""

from collections.abc import Mapping

import torch

PRECISIONS: Mapping[str, torch.dtype] = {"no": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
"""What networks compute in, by accelerate's names."""
DTYPES: Mapping[str, torch.dtype] = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}
"""What is kept, by torch's own names."""
