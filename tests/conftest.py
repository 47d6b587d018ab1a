"""What all tests share: workers side by side take one thread each, where two would wait for each other's cores."""

import os

if "PYTEST_XDIST_WORKER" in os.environ:
    # For this process if nothing has read it yet, and for those that the tests start.
    os.environ["OMP_NUM_THREADS"] = "1"
    import torch

    torch.set_num_threads(1)
