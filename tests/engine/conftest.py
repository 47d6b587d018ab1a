"""The small pipeline and the runs of the training tests."""

from tests.training.conftest import base, on_the_cpu, pairs, run, settings, shared_cache  # noqa: F401
