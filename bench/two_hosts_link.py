"""Two hosts on one machine: a process each in a network namespace of its own, joined by a link of a given rate.

The namespaces have no names and the link is made inside of them, so that the kernel removes all of it when the processes end;
and they end with the process that started them, however it ends. Needs root, and ip, tc, unshare and nsenter.
"""

from __future__ import annotations

import ctypes
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

HOSTS = 2
ADDRESSES = tuple(f"10.77.0.{rank + 1}" for rank in range(HOSTS))
INTERFACES = tuple(f"link{rank}" for rank in range(HOSTS))
# Bytes that TCP hands over at once, for the link to cut into packets, as to a network card. A shaper whose burst holds fewer
# cuts them by software, and the receiver then wakes for each packet: that takes half of the core that should compute.
SEGMENT = 16384
PR_SET_PDEATHSIG = 1
TOOLS = {"ip": "iproute2", "tc": "iproute2", "unshare": "util-linux", "nsenter": "util-linux"}


def missing() -> str:
    """Why this machine cannot hold two hosts; nothing if it can."""
    if sys.platform != "linux" or os.geteuid() != 0:
        return "two hosts need Linux and root, for network namespaces"
    lacking = [f"{tool} ({package})" for tool, package in TOOLS.items() if shutil.which(tool) is None]
    return f"two hosts need {', '.join(lacking)}" if lacking else ""


def die_with(parent: int) -> None:
    """End this process when the one that started it does."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:  # it was faster
        os._exit(1)


class TwoHosts:
    """A context in which a script runs on each host, on a core of its own; both are told the same and one answers.

    The script is called with its rank and the process id to die with. It writes a line when it has started, and then reads
    one JSON object a line, of which the first comes when the link is up.
    """

    def __init__(self, script: Path) -> None:
        self.script = script
        self.ranks: list[subprocess.Popen[str]] = []

    def __enter__(self) -> TwoHosts:
        for number in (signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, lambda number, frame: sys.exit(128 + number))
        try:
            self._start()
            self._join()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *exc: object) -> None:
        for rank in self.ranks:
            rank.kill()
        for rank in self.ranks:
            rank.wait()

    def shape(self, rate: str) -> None:
        """Let each host send at most at ``rate``, as tc writes it."""
        for rank in range(HOSTS):
            tbf = ["tbf", "rate", rate, "burst", str(2 * SEGMENT), "latency", "200ms"]
            self._inside(rank, "tc", "qdisc", "replace", "dev", INTERFACES[rank], "root", *tbf)

    def ask(self, task: dict[str, Any]) -> Any:
        """What rank 0 answers to a task for both.

        Raises:
            RuntimeError: a rank ended.
        """
        for rank in self.ranks:
            assert rank.stdin is not None
            rank.stdin.write(json.dumps(task) + "\n")
            rank.stdin.flush()
        return json.loads(self._line(0))

    def _start(self) -> None:
        cores = sorted(os.sched_getaffinity(0))
        # One thread a rank; freed memory is kept, as page faults would drown what is measured.
        variables = {"OMP_NUM_THREADS": "1", "MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(2**31 - 1)}
        for rank in range(HOSTS):
            command = ["unshare", "--net", sys.executable, str(self.script), str(rank), str(os.getpid())]
            core = {cores[rank % len(cores)]}
            environment = {**os.environ, **variables, "GLOO_SOCKET_IFNAME": INTERFACES[rank]}
            self.ranks.append(
                subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)
            )
            os.sched_setaffinity(self.ranks[-1].pid, core)
        for rank in range(HOSTS):
            self._line(rank)

    def _join(self) -> None:
        peer = ["peer", "name", INTERFACES[1], "netns", str(self.ranks[1].pid)]
        self._inside(0, "ip", "link", "add", INTERFACES[0], "type", "veth", *peer)
        for rank in range(HOSTS):
            self._inside(rank, "ip", "link", "set", INTERFACES[rank], "gso_max_size", str(SEGMENT))
            self._inside(rank, "ip", "address", "add", f"{ADDRESSES[rank]}/24", "dev", INTERFACES[rank])
            for interface in ("lo", INTERFACES[rank]):
                self._inside(rank, "ip", "link", "set", interface, "up")

    def _inside(self, rank: int, *command: str) -> None:
        _call(["nsenter", "--net", "--target", str(self.ranks[rank].pid), *command])

    def _line(self, rank: int) -> str:
        output = self.ranks[rank].stdout
        assert output is not None
        line = output.readline()
        if not line:
            raise RuntimeError(f"rank {rank} ended with {self.ranks[rank].wait()}")
        return line


def _call(command: Sequence[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: {done.stderr.strip()}")
