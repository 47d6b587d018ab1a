"""Synthetic preference data: images of any prompts by any generators, scored by rewards, packed for training."""
