"""Objectives: what is done with the log-ratios of a probe; one method a file."""

from diffpref.objectives.dpo import DPO

__all__ = ["DPO"]
