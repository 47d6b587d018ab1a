"""Each planted bug still has its place in the code: a text that moved on would be a bug that nobody plants."""

from pathlib import Path

import pytest

from tests.mutations.bugs import ROOT, Bug, problems, read_suite, suites


@pytest.mark.parametrize("name", suites())
def test_every_text_is_found_once(name: str) -> None:
    suite = read_suite(name)
    assert suite.bugs and not problems(suite.bugs)
    assert len(set(suite.bugs)) == len(suite.bugs), "a bug is planted twice"


@pytest.mark.parametrize("name", suites())
def test_every_suite_runs_tests_that_exist(name: str) -> None:
    tests = [Path(test.split("::")[0]) for test in read_suite(name).tests if test.startswith("tests/")]
    assert tests and all((ROOT / test).exists() for test in tests)


def test_a_text_that_is_not_there_once_is_named() -> None:
    twice, never = Bug("diffpref/path.py", "def ", "def x"), Bug("diffpref/path.py", "no such text", "")
    wrong = Bug("diffpref/path.py", "return PathX", "return (")
    assert ["is there" in line for line in problems((twice, never, wrong))] == [True, True, True]
    broken = Bug("diffpref/path.py", "class GaussianPath:", "class GaussianPath(:")
    assert "it is no Python" in problems((broken,))[0]
