"""Training a reward: a CLIP that learns from preferences which of two images people like better for a prompt.

The result is a folder in PickScore's format, which `find_reward("pickscore", ...)` loads.
"""
