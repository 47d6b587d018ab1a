"""What lies on a disk: whole writes, hashes, kept tensors, and room for them."""
