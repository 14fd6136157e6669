"""The processes that are ranks: one parent imports torch, once, and forks a rank whenever it is told to.

    python worker.py ADDRESS

Everybody talks to the test session through its listener at ADDRESS. The parent is told (world size, store file); a rank is told
(file, function, arguments), calls the function, and answers (kind, value), kind one of "ok", "skip", "error".
"""

from __future__ import annotations

import importlib.util
import os
import signal
import sys
import traceback
from datetime import timedelta
from multiprocessing.connection import Client
from pathlib import Path
from types import ModuleType

import pytest
import torch
import torch._dynamo  # what the first DTensor would import in each rank
import torch.distributed as dist
import torch.distributed.checkpoint
import torch.distributed.fsdp
import torch.distributed.tensor.parallel

import ladderkern  # noqa: F401 - imported once, before the forks

TIMEOUT = timedelta(seconds=60)


def load(path: str) -> ModuleType:
    name = f"ranks_{Path(path).stem}"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, path)
        assert spec is not None
        assert spec.loader is not None
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]


def answer(path: str, function: str, arguments: dict[str, object]) -> tuple[str, object]:
    try:
        return "ok", getattr(load(path), function)(**arguments)
    except pytest.skip.Exception as skip:
        return "skip", str(skip)
    except BaseException:
        return "error", traceback.format_exc()


def be_rank(address: str, rank: int, world_size: int, store_file: str) -> None:
    tasks = Client(address)
    tasks.send((rank, os.getpid()))
    torch.set_num_threads(1)  # ranks share the machine's cores
    store = dist.FileStore(store_file, world_size)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=world_size, timeout=TIMEOUT)
    while (task := tasks.recv()) is not None:
        torch.manual_seed(rank)  # no draw of ours may follow a rank's RNG
        tasks.send(answer(*task))


def main(address: str) -> None:
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # ended ranks need no waiting for
    orders = Client(address)
    while (order := orders.recv()) is not None:
        for rank in range(order[0]):
            if os.fork() == 0:
                orders.close()
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                try:
                    be_rank(address, rank, *order)
                except EOFError:
                    pass  # the session is gone
                finally:
                    os._exit(0)  # no teardown: a peer may be gone already


if __name__ == "__main__":
    main(sys.argv[1])
