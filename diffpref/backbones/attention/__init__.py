"""Attention by the best kernel of each GPU: tried before it is used, and the same for policy and reference."""

from diffpref.backbones.attention.choice import Setting, order, require
from diffpref.backbones.attention.kernels import KERNELS, Backend
from diffpref.backbones.attention.probing import BACKENDS, Report, attention_report, why_not

__all__ = ["BACKENDS", "KERNELS", "Backend", "Report", "Setting", "attention_report", "order", "require", "why_not"]
