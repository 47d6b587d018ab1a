"""The core's public names are documented, and the examples in their docstrings run.

In the examples `model`, `policy` and `reference` are networks on the straight path that predict 0, and `probe` compares
two images of one prompt."""

import doctest
import importlib
import inspect
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from diffpref.path import GaussianPath, rectified_flow
from diffpref.probe import forward_probe
from diffpref.types import Cond

MODULES = ["transfer", "path", "types", "noise", "inversion", "transition", "probe", "errors"]
MODULES += [f"objectives.{name}" for name in ("dpo", "smpo", "rankdpo", "d3po", "ddo", "alarms")]


class Zero:
    """A network that predicts 0."""

    path: GaussianPath = rectified_flow()

    def __call__(self, x_t: Tensor, t: Tensor, cond: Cond) -> Tensor:
        return torch.zeros_like(x_t)


def public() -> Iterator[tuple[str, str]]:
    """The module and the name of each public function and class of the core."""
    for module in MODULES:
        found = importlib.import_module(f"diffpref.{module}")
        for name, value in vars(found).items():
            if name[0] != "_" and callable(value) and getattr(value, "__module__", "") == found.__name__:
                yield module, name


@pytest.mark.parametrize(("module", "name"), list(public()))
def test_every_name_has_an_example_that_runs(module: str, name: str) -> None:
    home = importlib.import_module(f"diffpref.{module}")
    value = getattr(home, name)
    assert inspect.getdoc(value), f"{module}.{name} says what it is"
    if getattr(value, "_is_protocol", False):
        return  # Nothing to call: whoever fulfils it has the example.
    x0 = torch.ones(1, 2, 4)
    probe = forward_probe(rectified_flow(), x0, torch.tensor([0.5]), torch.zeros(1, 2, 4))
    names = {"torch": torch, "model": Zero(), "policy": Zero(), "reference": Zero(), "probe": probe}
    finder = doctest.DocTestFinder(recurse=False)
    (test,) = finder.find(value, name, module=False, globs={**vars(home), **names})
    assert test.examples, f"{module}.{name} has an example of its use"
    report: list[str] = []
    result = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE).run(test, out=report.append)
    assert result.failed == 0, "".join(report)
