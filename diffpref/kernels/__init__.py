"""The operators of the per-timestep loss: errors of predictions, and noised pictures with their targets.

Each is one `torch.library` operator: Triton on CUDA, the same formula in plain torch anywhere else.
"""

from diffpref.kernels.error import fused_error
from diffpref.kernels.noising import noise_and_target

__all__ = ["fused_error", "noise_and_target"]
