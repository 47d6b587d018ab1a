"""`diffpref bench`: memory, FLOPs and launches counted; speed and memory measured where it can be."""
