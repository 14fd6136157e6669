"""Training runs of the demo side by side: each in a process of its own on one thread, and one progress bar for all."""

from __future__ import annotations

import contextlib
import multiprocessing
import pickle
import queue
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ProcessPoolExecutor, wait
from typing import Any, NamedTuple

import torch

Progress = Callable[[Iterable[Any]], Iterable[Any]]


class Job(NamedTuple):
    """A call to make, in this process or another: pickled whole, so the function is one that can be imported.

    ``function`` takes ``progress`` as well, which wraps the steps that it iterates over.
    """

    function: Callable[..., Any]
    arguments: tuple[Any, ...]
    keywords: dict[str, Any]


class Workers:
    """So many runs at a time; with one, in this process. Other processes start at the first need and end with the block."""

    def __init__(self, at_a_time: int) -> None:
        self.at_a_time = at_a_time
        self._context = multiprocessing.get_context("spawn")  # threads of torch do not survive a fork
        self._ticks: Any = None
        self._calls = 0
        self._pool: ProcessPoolExecutor | None = None

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, *_: object) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)

    def run(self, title: str, jobs: Sequence[Job], steps: int) -> list[Any]:
        """The results of jobs of ``steps`` steps each, in their order. The first error of one is raised."""
        from tqdm import tqdm

        at_a_time = min(self.at_a_time, len(jobs))
        how = "one by one" if at_a_time == 1 else f"{at_a_time} at a time"
        with tqdm(desc=f"{title}, {how}", total=steps * len(jobs), unit="step", mininterval=0.5) as bar:
            if at_a_time == 1:
                return [_call(job, bar.update) for job in jobs]
            return self._run_elsewhere(jobs, bar)

    def _run_elsewhere(self, jobs: Sequence[Job], bar: Any) -> list[Any]:
        if self._pool is None:
            self._ticks = self._context.Queue()
            self._pool = ProcessPoolExecutor(
                self.at_a_time, mp_context=self._context, initializer=_start_worker, initargs=(self._ticks,)
            )
        self._calls += 1
        # As bytes: torch's own way of sending a tensor keeps both processes busy with shared memory.
        futures = [self._pool.submit(_work, pickle.dumps(job), self._calls) for job in jobs]
        while not _finished(futures):
            with contextlib.suppress(queue.Empty):
                bar.update(self._ticks.get(timeout=0.2) == self._calls)  # not one that the last call was done without
        bar.update(bar.total - bar.n)
        return [pickle.loads(future.result()) for future in futures]


def _finished(futures: Sequence[Future[bytes]]) -> bool:
    """Whether all are done, or one has failed, whose error is raised."""
    done, pending = wait(futures, timeout=0, return_when=FIRST_EXCEPTION)
    for future in done:
        future.result()
    return not pending


def _call(job: Job, tick: Callable[[], Any]) -> Any:
    def progress(steps: Iterable[Any]) -> Iterator[Any]:
        for step in steps:
            yield step
            tick()

    return job.function(*job.arguments, progress=progress, **job.keywords)


_ticks: Any  # of a worker: the queue to its parent


def _start_worker(ticks: Any) -> None:
    global _ticks
    _ticks = ticks
    torch.set_num_threads(1)


def _work(job: bytes, number: int) -> bytes:
    return pickle.dumps(_call(pickle.loads(job), lambda: _ticks.put(number)))
