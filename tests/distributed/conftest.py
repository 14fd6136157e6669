"""Runs tests on several gloo ranks.

A test marked ``@pytest.mark.ranks(2, 3)`` runs once on 2 and once on 3 ranks: its function is called on every rank, with the
arguments it was parametrised with, and passes when it returns on all of them. The processes of one world size are started once
and serve every test; after an error or a timeout they are replaced. The ``on_ranks`` fixture is the same by hand, for tests that
change the world size on the way.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest

import ladderkern

HERE = Path(__file__).parent
SECONDS = 90  # a test takes about one; the rest is for a machine that is busy
GRACE = 2  # what the other ranks get to finish once one has failed: they may wait for it in a collective

sys.path.insert(0, str(HERE))  # with --import-mode=importlib a test does not see its neighbours


class Ranks:
    """The processes of one world size."""

    def __init__(self, world_size: int, store: Path) -> None:
        package = Path(ladderkern.__file__).parents[1]  # the ranks test what this process tests
        path = os.pathsep.join(filter(None, (str(package), os.environ.get("PYTHONPATH"))))
        self.pipes: list[Connection] = []
        self.processes: list[subprocess.Popen[bytes]] = []
        for rank in range(world_size):
            mine, theirs = Pipe()
            fd = theirs.fileno()
            command = [sys.executable, str(HERE / "worker.py"), str(rank), str(world_size), str(store), str(fd)]
            self.processes.append(subprocess.Popen(command, pass_fds=[fd], env={**os.environ, "PYTHONPATH": path}))
            theirs.close()
            self.pipes.append(mine)

    def run(self, path: str, function: str, arguments: dict[str, Any]) -> list[tuple[str, Any]]:
        """(kind, value) of every rank; "lost" for one that died and "hung" for one that gave no answer in time."""
        for pipe in self.pipes:
            pipe.send((path, function, arguments))
        answers: list[tuple[str, Any]] = [("hung", f"no answer within {SECONDS} s")] * len(self.pipes)
        waiting = set(range(len(self.pipes)))
        end = time.monotonic() + SECONDS
        while waiting and time.monotonic() < end:
            for rank in sorted(waiting):
                if not self.pipes[rank].poll(0.002):
                    continue
                try:
                    answers[rank] = self.pipes[rank].recv()
                except EOFError:
                    answers[rank] = ("lost", f"process ended with {self.processes[rank].wait()}")
                waiting.discard(rank)
                if answers[rank][0] in ("error", "lost"):
                    end = min(end, time.monotonic() + GRACE)
        for rank in waiting:
            if any(kind in ("error", "lost") for kind, _ in answers):
                answers[rank] = ("hung", "still waiting after another rank had failed")
        return answers

    def close(self) -> None:
        for pipe, process in zip(self.pipes, self.processes, strict=True):
            if process.poll() is None:
                pipe.send(None)
        for process in self.processes:
            try:
                process.wait(timeout=10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def kill(self) -> None:
        for process in self.processes:
            process.kill()
        for process in self.processes:
            process.wait()


class Launcher:
    """Calls test functions on ranks, and keeps the processes for the next call."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.ranks: dict[int, Ranks] = {}
        self.started = 0

    def __call__(self, world_size: int, function: Callable[..., Any], **arguments: Any) -> list[Any]:
        """What the function returns on each rank.

        Raises:
            pytest.fail.Exception: with the traceback of every rank that did not return.
        """
        if world_size not in self.ranks:
            self.started += 1
            self.ranks[world_size] = Ranks(world_size, self.folder / f"store{self.started}")
        answers = self.ranks[world_size].run(function.__code__.co_filename, function.__name__, arguments)
        if {kind for kind, _ in answers} == {"skip"}:
            pytest.skip(answers[0][1])
        bad = [f"rank {rank} of {world_size}: {kind}\n{value}" for rank, (kind, value) in enumerate(answers) if kind != "ok"]
        if bad:
            self.ranks.pop(world_size).kill()  # a rank may still be inside a collective
            pytest.fail("\n".join(bad), pytrace=False)
        return [value for _, value in answers]

    def close(self) -> None:
        for ranks in self.ranks.values():
            ranks.close()


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
        metafunc.fixturenames.extend(name for name in ("on_ranks", "world_size") if name not in metafunc.fixturenames)
        metafunc.parametrize("world_size", marker.args)


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    if pyfuncitem.get_closest_marker("ranks") is None:
        return None
    own = {name: pyfuncitem.funcargs[name] for name in pyfuncitem._fixtureinfo.argnames}
    pyfuncitem.funcargs["on_ranks"](pyfuncitem.funcargs["world_size"], pyfuncitem.function, **own)
    return True
