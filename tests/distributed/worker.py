"""One rank: a process that runs the test functions it is told to, in one gloo process group.

    python worker.py RANK WORLD_SIZE STORE_FILE PIPE_FD

Tasks arrive as (file, function, arguments); the answer is (kind, value), kind one of "ok", "skip", "error".
"""

from __future__ import annotations

import importlib.util
import sys
import traceback
from datetime import timedelta
from multiprocessing.connection import Connection
from pathlib import Path
from types import ModuleType

import pytest
import torch
import torch.distributed as dist

TIMEOUT = timedelta(seconds=60)


def load(path: str) -> ModuleType:
    name = f"ranks_{Path(path).stem}"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, path)
        assert spec is not None and spec.loader is not None
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


def main(rank: int, world_size: int, store_file: str, pipe_fd: int) -> None:
    torch.set_num_threads(1)  # ranks share the machine's cores
    tasks = Connection(pipe_fd)
    store = dist.FileStore(store_file, world_size)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=world_size, timeout=TIMEOUT)
    while (task := tasks.recv()) is not None:
        torch.manual_seed(rank)  # no draw of ours may follow a rank's RNG
        tasks.send(answer(*task))
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], int(sys.argv[4]))
