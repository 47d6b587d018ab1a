"""`python -m benchmarks`: memory, FLOPs and launches counted; speed and memory measured where it can be."""
