"""One training loop and what surrounds it."""
