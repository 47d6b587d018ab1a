"""Synthetic preference data: pictures of any prompts by any generators, scored by rewards, packed for training."""
