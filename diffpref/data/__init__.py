"""Preference data: public schemas in, rows of a prompt, its pictures and their scores out."""

from diffpref.data.check import check_rows
from diffpref.data.rows import Picture, Preferences, Row, decode, picture_size
from diffpref.data.sources import as_pairs, read_preferences

__all__ = ["Picture", "Preferences", "Row", "as_pairs", "check_rows", "decode", "picture_size", "read_preferences"]
