"""Starts two ranks for all selected specimens, and makes a test of each."""

import pytest

from tests import together
from zoo import specimens

pytestmark = together.needs_mpi


@pytest.fixture(scope="module")
def results(request, tmp_path_factory):
    """{name: (failure, seconds)} of all selected specimens."""
    names = together.selected_names(request, test_specimen)
    return together.run(2, ["-m", "zoo"], names, tmp_path_factory.mktemp("zoo"))


def _parameters():
    names = specimens.collect()
    slow = {name: [pytest.mark.slow] for name in specimens.SLOW}
    return [pytest.param(name, marks=slow.get(name, []), id=name) for name in names]


@pytest.mark.parametrize("name", _parameters())
def test_specimen(name, results):
    failure, _ = results[name]
    assert not failure, f"{name}: {specimens.SPECIMENS[name].__doc__}\n{failure}"
