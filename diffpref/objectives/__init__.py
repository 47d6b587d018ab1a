"""Objectives: what is done with the log-ratios of a probe; one method a file."""

from diffpref.objectives.d3po import D3PO
from diffpref.objectives.ddo import DDO
from diffpref.objectives.dpo import DPO
from diffpref.objectives.rankdpo import RankDPO
from diffpref.objectives.smpo import SmPO

__all__ = ["D3PO", "DDO", "DPO", "OBJECTIVES", "RankDPO", "SmPO"]
OBJECTIVES: dict[str, type] = {"dpo": DPO, "smpo": SmPO, "rankdpo": RankDPO, "d3po": D3PO, "ddo": DDO}
"""The names in a config. Your own needs no line here: `objective: my_file.py:Name`."""
