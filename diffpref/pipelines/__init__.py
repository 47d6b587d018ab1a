"""Pipelines in diffusers' form that diffusers itself lacks."""
