"""Runs tests on several gloo ranks.

A test marked ``@pytest.mark.ranks(2, 3)`` runs once on 2 and once on 3 ranks: its function is called on every rank, with the
arguments it was parametrised with, and passes when it returns on all of them. The processes of one world size are started
once and serve every test; after an error or a timeout they are replaced. The ``on_ranks`` fixture is the same by hand, for
tests that change the world size on the way.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # with --import-mode=importlib a test does not see its neighbours

from ranks import Launcher


@pytest.fixture(scope="session")
def on_ranks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Launcher]:
    """``on_ranks(world_size, function, **arguments)`` calls a module-level function on every rank: a list of its results."""
    launcher = Launcher(tmp_path_factory.mktemp("ranks"))
    yield launcher
    launcher.close()


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "ranks(*world_sizes): call the test on every rank of a gloo group, once a world size")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    marker = metafunc.definition.get_closest_marker("ranks")
    if marker is not None:
        if "world_size" not in metafunc.fixturenames:
            metafunc.fixturenames.append("world_size")
        metafunc.parametrize("world_size", marker.args)


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    if pyfuncitem.get_closest_marker("ranks") is None:
        return None
    own = {name: pyfuncitem.funcargs[name] for name in pyfuncitem._fixtureinfo.argnames}
    on_ranks = pyfuncitem._request.getfixturevalue("on_ranks")
    on_ranks(pyfuncitem.callspec.params["world_size"], pyfuncitem.function, **own)
    return True
