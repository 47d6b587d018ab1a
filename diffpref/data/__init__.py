"""Preference data: public schemas in, rows of a prompt, its images and their scores out."""

from diffpref.data.check import check_rows
from diffpref.data.decode import ImageSource, decode, image_size
from diffpref.data.pairs import as_pairs
from diffpref.data.preferences import read_preferences
from diffpref.data.rows import Preferences, Row

__all__ = ["ImageSource", "Preferences", "Row", "as_pairs", "check_rows", "decode", "image_size", "read_preferences"]
