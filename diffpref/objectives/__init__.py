"""Objectives: what is done with the log-ratios of a probe; one method a file."""

from diffpref.objectives.d3po import D3PO
from diffpref.objectives.ddo import DDO
from diffpref.objectives.dpo import DPO
from diffpref.objectives.rankdpo import RankDPO
from diffpref.objectives.smpo import SmPO

__all__ = ["DPO", "SmPO", "RankDPO", "D3PO", "DDO"]
