"""Labels by people: pairs of images in a folder, a local page that asks which is better, the answers as numbers."""

from diffpref.people.pairs import Pair, read_labels, read_pairs, unanswered, write_pairs
from diffpref.people.server import serve

__all__ = ["Pair", "read_labels", "read_pairs", "serve", "unanswered", "write_pairs"]
