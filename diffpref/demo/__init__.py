"""The world of emoji and clothes that the quickstart and the comparisons live in."""
