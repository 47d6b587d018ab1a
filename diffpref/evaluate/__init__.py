"""Is the tuned model better? Statistics, a judge that training never sees, and a comparison of two sets of pictures."""
