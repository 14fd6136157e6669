"""Is one revision slower than another?  ``make bench-compare BASE=v0.1 [HEAD=main] [BENCH="spam-small prm"]``

Each revision is built in a worktree of its own, build/compare/<sha>. Three processes, of BASE, of HEAD and of BASE again, take
turns; each times ours against the same yardstick in its own process (fused AdamW, an eager chain), so that what slows the
machine slows both. The second BASE shows what identical code differs by here. Ends with 1 where HEAD is slower beyond that.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from itertools import permutations
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parent.parent
WORKER = Path(__file__).with_name("compare_worker.py")
BASE, HEAD, AGAIN = "base", "head", "base again"
ORDERS = list(permutations((BASE, HEAD, AGAIN)))
ERROR_RATE = 0.01  # of either end of an interval


class Failed(Exception):
    """Nothing can be compared; the message says why."""


class Interval(NamedTuple):
    """The median of some values, and where the median of many more would lie."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Interval:
        """From order statistics: each end is wrong with at most ERROR_RATE, whatever the distribution.

        Fewer than 7 values cannot say that; theirs are the smallest and the largest.
        """
        ordered, n = sorted(values), len(values)
        k, below = 0, 1 / 2**n
        while below + math.comb(n, k + 1) / 2**n <= ERROR_RATE:
            k += 1
            below += math.comb(n, k) / 2**n
        middle = (ordered[(n - 1) // 2] + ordered[n // 2]) / 2
        return cls(middle, ordered[k], ordered[n - 1 - k])


class Compared(NamedTuple):
    """One case: time of HEAD over BASE, and of BASE over itself."""

    case: str
    ratio: Interval
    control: Interval
    noise: float  # what counts as no difference

    @property
    def verdict(self) -> str:
        """ "slower" or "faster" where the whole interval lies beyond the noise, else "same"."""
        if self.ratio.low > 1 + self.noise:
            return "slower"
        return "faster" if self.ratio.high < 1 / (1 + self.noise) else "same"


def judged(case: str, visits: Sequence[dict[str, float]], tolerance: float) -> Compared:
    """Compare the ratios to the yardstick that each visit of the three processes found.

    The noise is the tolerance, or what the control's interval reaches to either side where that is more.
    """
    ratio = Interval.of([visit[HEAD] / visit[BASE] for visit in visits])
    control = Interval.of([visit[AGAIN] / visit[BASE] for visit in visits])
    return Compared(case, ratio, control, max(tolerance, control.high - 1, 1 / control.low - 1))


def _git(repository: Path, *arguments: str | Path) -> str:
    done = subprocess.run(["git", "-C", repository, *arguments], capture_output=True, text=True)
    if done.returncode:
        raise Failed(done.stderr.strip())
    return done.stdout.strip()


def resolved(repository: Path, revision: str) -> str:
    """The commit that a revision names now."""
    try:
        return _git(repository, "rev-parse", "--verify", "--quiet", "--end-of-options", f"{revision}^{{commit}}")
    except Failed:
        raise Failed(f"no such revision: {revision}") from None


def built(repository: Path, sha: str) -> Path:
    """The worktree of a commit, with its native library built; made once, then found again."""
    tree = repository / "build" / "compare" / sha
    if not tree.exists():
        _git(repository, "worktree", "add", "--quiet", "--force", "--detach", tree, sha)
    native = os.environ.get("LADDERKERN_BUILD_NATIVE", "1") != "0"
    stamp = tree / "build" / "compared"
    if native and not stamp.exists():
        print(f"building {sha[:12]}", flush=True)
        environment = {**os.environ, "LADDERKERN_BUILD_TESTS": "0", "LADDERKERN_BUILD_CUDA": "0"}
        command = [sys.executable, "setup.py", "-q", "build_ext", "--inplace"]
        done = subprocess.run(command, cwd=tree, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        if done.returncode:
            raise Failed(f"{sha} does not build:\n{done.stdout[-3000:]}")
        stamp.touch()
    return tree


class Worker:
    """A process of one revision, which waits between two cases."""

    def __init__(self, tree: Path, rounds: int) -> None:
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tree), str(WORKER.parent)])}
        command = [sys.executable, "-W", "ignore", str(WORKER), str(tree), str(rounds)]
        self.process = subprocess.Popen(
            command, cwd=tree, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.about = self._answer()

    def _answer(self) -> dict[str, Any]:
        line = self.process.stdout.readline()
        if not line:
            raise Failed(f"a process that timed ended with {self.process.wait()}; its message stands above")
        return json.loads(line)

    def ask(self, case: str) -> dict[str, Any]:
        """Time one case, with fresh tensors."""
        self.process.stdin.write(f"{case}\n")
        self.process.stdin.flush()
        return self._answer()

    def close(self) -> None:
        """Let it end, and wait."""
        self.process.stdin.close()
        self.process.wait()


@contextmanager
def workers(trees: dict[str, Path], rounds: int) -> Iterator[dict[str, Worker]]:
    """A fresh process for each role."""
    with ExitStack() as stack:
        started = {}
        for role, tree in trees.items():  # one by one: the next starts when this one waits
            started[role] = Worker(tree, rounds)
            stack.callback(started[role].close)
        yield started


def chosen(known: Sequence[str], wanted: Sequence[str]) -> list[str]:
    """The cases of these names; all where none is named."""
    unknown = [name for name in wanted if name not in known]
    if unknown:
        raise Failed(f"no such case: {', '.join(unknown)}; there are {', '.join(known)}")
    return list(wanted or known)


def compare(
    trees: dict[str, Path], wanted: Sequence[str], launches: int, visits: int, rounds: int
) -> Iterator[tuple[str, Any]]:
    """(case, what each visit found), or (case, why it cannot be compared). Each launch lies elsewhere in memory."""
    found: dict[str, list[dict[str, float]]] = {}
    errors: dict[str, str] = {}
    for launch in range(launches):
        with workers(trees, rounds) as running:
            names = chosen(running[HEAD].about["cases"], wanted)
            if launch == 0:
                for role in (BASE, HEAD):
                    print(f"{role}: {trees[role].name[:12]}, native library {running[role].about['native']}", flush=True)
            for name in names:
                for visit in range(visits):
                    if name in errors:
                        break
                    order = ORDERS[(launch * visits + visit) % len(ORDERS)]
                    answers = {role: running[role].ask(name) for role in order}
                    wrong = [f"{role}: {answer['error']}" for role, answer in answers.items() if "error" in answer]
                    if wrong:
                        errors[name] = "; ".join(wrong)
                    else:
                        found.setdefault(name, []).append({role: answer["ratio"] for role, answer in answers.items()})
    yield from ((name, errors.get(name) or found[name]) for name in names)


def _line(*cells: str) -> str:
    return "  ".join(cell.ljust(width) for cell, width in zip(cells, (14, 11, 15, 8, 15, 8, 0), strict=True)).rstrip()


def _report(results: Sequence[Compared]) -> None:
    print(_line("case", "head / base", "99 % interval", "control", "99 % interval", "noise", ""))
    for r in results:
        intervals = [f"{i.low:.3f} - {i.high:.3f}" for i in (r.ratio, r.control)]
        medians = [f"{i.median:.3f}" for i in (r.ratio, r.control)]
        print(_line(r.case, medians[0], intervals[0], medians[1], intervals[1], f"{100 * r.noise:.1f} %", r.verdict))
    print("time of HEAD over BASE, each over the yardstick in its own process; control: BASE over itself, 1 but for noise")


def main(arguments: Sequence[str] | None = None) -> int:
    """0: no case is slower beyond noise; 1: one is; 2: nothing could be compared."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("base", help="a revision that git knows: what was")
    parser.add_argument("head", nargs="?", default="HEAD", help="what is held against it (default HEAD, without open changes)")
    parser.add_argument("--bench", nargs="*", default=[], metavar="CASE", help="these cases alone")
    parser.add_argument("--launches", type=int, default=4, help="how often the processes are started anew (default 4)")
    parser.add_argument("--visits", type=int, default=6, help="turns of each process and case in a launch (default 6)")
    parser.add_argument("--rounds", type=int, default=10, help="samples of ours and of the yardstick in a turn (default 10)")
    parser.add_argument("--tolerance", type=float, default=0.03, help="a difference that is none (default 0.03)")
    parser.add_argument("--repository", type=Path, default=ROOT, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.launches * options.visits < 7:
        parser.error("--launches times --visits must be at least 7: fewer cannot tell noise from a difference")
    try:
        shas = [resolved(options.repository, revision) for revision in (options.base, options.head)]  # before either moves
        base, head = (built(options.repository, sha) for sha in shas)
        trees = {BASE: base, HEAD: head, AGAIN: base}
        found = list(compare(trees, options.bench, options.launches, options.visits, options.rounds))
    except Failed as error:
        print(f"bench-compare: {error}", file=sys.stderr)
        return 2
    results = [judged(name, visits, options.tolerance) for name, visits in found if not isinstance(visits, str)]
    for name, why in found:
        if isinstance(why, str):
            print(f"{name}: not compared, {why}")
    if not results:
        return 2
    _report(results)
    return int(any(result.verdict == "slower" for result in results))


if __name__ == "__main__":
    sys.exit(main())
