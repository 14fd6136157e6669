"""Processes that are gloo ranks, as the test session starts and orders them about; worker.py is their side."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from multiprocessing.connection import Connection, Listener
from pathlib import Path
from typing import Any

import pytest

import ladderkern

HERE = Path(__file__).parent
SECONDS = 90  # a test takes about one; the rest is for a machine that is busy
GRACE = 2  # what the other ranks get to finish once one has failed: they may wait for it in a collective


class Ranks:
    """The processes of one world size, in the order of their ranks."""

    def __init__(self, members: list[tuple[int, int, Connection]]) -> None:
        self.pids = [pid for _, pid, _ in members]
        self.pipes = [pipe for _, _, pipe in members]

    def run(self, path: str, function: str, arguments: dict[str, Any], grace: float = GRACE) -> list[tuple[str, Any]]:
        """(kind, value) of every rank; kind "lost" for a rank that died, "hung" for one that gave no answer in time.

        Once one has died or failed, the others have ``grace`` seconds left.
        """
        for pipe in self.pipes:
            pipe.send((path, function, arguments))
        answers: list[tuple[str, Any]] = [("hung", "no answer")] * len(self.pipes)
        waiting = set(range(len(self.pipes)))
        end = time.monotonic() + SECONDS
        while waiting and time.monotonic() < end:
            for rank in sorted(waiting):
                if not self.pipes[rank].poll(0.002):
                    continue
                try:
                    answers[rank] = self.pipes[rank].recv()
                except (EOFError, ConnectionError):
                    answers[rank] = ("lost", "the process died")
                waiting.discard(rank)
                if answers[rank][0] in ("error", "lost"):
                    end = min(end, time.monotonic() + grace)
        return answers

    def kill(self) -> None:
        for pid, pipe in zip(self.pids, self.pipes, strict=True):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)  # it may be inside a collective
            pipe.close()


class Launcher:
    """Calls test functions on ranks, and keeps the processes for the next call."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.ranks: dict[int, Ranks] = {}
        self.started = 0
        self.listener = Listener(str(folder / "listener"), "AF_UNIX", backlog=16)
        self.listener._listener._socket.settimeout(SECONDS)  # a process that cannot start must not hang the session
        package = Path(ladderkern.__file__).parents[1]  # the ranks test what this process tests
        path = os.pathsep.join(filter(None, (str(package), os.environ.get("PYTHONPATH"))))
        command = [sys.executable, str(HERE / "worker.py"), self.listener.address]
        self.process = subprocess.Popen(command, env={**os.environ, "PYTHONPATH": path})
        self.orders = self.listener.accept()

    def __call__(self, world_size: int, function: Callable[..., Any], /, **arguments: Any) -> list[Any]:
        """What the function returns on each rank.

        Raises:
            pytest.fail.Exception: with the traceback of every rank that did not return.
        """
        if world_size not in self.ranks:
            self.ranks[world_size] = self.start(world_size)
        answers = self.ranks[world_size].run(function.__code__.co_filename, function.__name__, arguments)
        if {kind for kind, _ in answers} == {"skip"}:
            pytest.skip(answers[0][1])
        bad = [f"rank {rank} of {world_size}: {kind}\n{value}" for rank, (kind, value) in enumerate(answers) if kind != "ok"]
        if bad:
            self.ranks.pop(world_size).kill()
            pytest.fail("\n".join(bad), pytrace=False)
        return [value for _, value in answers]

    def start(self, world_size: int) -> Ranks:
        """Processes of one's own, for a test in which some die; ``kill`` them afterwards."""
        self.started += 1
        self.orders.send((world_size, str(self.folder / f"store{self.started}")))
        members = []
        for _ in range(world_size):
            pipe = self.listener.accept()
            members.append((*pipe.recv(), pipe))
        return Ranks(sorted(members, key=lambda member: member[0]))

    def close(self) -> None:
        for ranks in self.ranks.values():
            ranks.kill()
        self.orders.send(None)
        self.process.wait(timeout=30)
        self.listener.close()
