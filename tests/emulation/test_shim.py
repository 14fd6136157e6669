"""The shim itself: right kernels give the right result in every order of threads, and planted faults are found."""

import emulated
import numpy as np
import pytest

SEEDS = pytest.mark.parametrize("seed", range(8))
N = 64


def one_block(kernel, out, threads=N, place=0):
    given = np.arange(1, threads + 1, dtype=np.float32)
    emulated.MODULE.one_block(kernel, threads, given.view(np.uint8), out.view(np.uint8), place)
    return given


@SEEDS
@pytest.mark.parametrize("threads", [32, 64, 256])
def test_shared_memory_and_barriers(seed, threads):
    emulated.MODULE.seed(seed)
    out = np.empty(threads, np.float32)
    given = one_block("reverse", out, threads)
    assert (out == given[::-1]).all()
    given = one_block("sum in rounds", out, threads)
    assert (out == given.sum()).all()


@SEEDS
def test_shuffles(seed):
    emulated.MODULE.seed(seed)
    out = np.empty(N, np.float32)
    given = one_block("sum by shuffles", out)
    assert (out.reshape(-1, 32) == given.reshape(-1, 32).sum(axis=1, keepdims=True)).all()


@SEEDS
def test_atomics_over_all_blocks(seed):
    emulated.MODULE.seed(seed)
    given, out = np.arange(7 * N, dtype=np.float32), np.zeros(1, np.float32)
    emulated.MODULE.sum_of_blocks(given.view(np.uint8), out.view(np.uint8), 7, N)
    assert out == given.sum()


def test_the_order_of_threads_depends_on_the_seed_alone():
    def order(seed):
        emulated.MODULE.seed(seed)
        out = np.empty(N, np.float32)
        one_block("reverse, no barrier", out)
        return out.tobytes()

    assert order(1) == order(1)
    assert order(1) != order(2)


@SEEDS
def test_a_missing_barrier_shows_as_numbers_that_were_never_written(seed):
    emulated.MODULE.seed(seed)
    out = np.empty(N, np.float32)
    one_block("reverse, no barrier", out)
    assert np.isnan(out).sum() > N // 4


@SEEDS
def test_a_missing_second_barrier_shows_as_a_wrong_sum(seed):
    emulated.MODULE.seed(seed)
    out = np.empty(N, np.float32)
    given = one_block("sum in rounds, one barrier", out)
    assert not (out == given.sum()).all()


@pytest.mark.skipif(emulated.SANITIZED, reason="AddressSanitizer ends the process")
@pytest.mark.parametrize(
    ("place", "message"), [(-1, "out was written before"), (N, "out was written 0 bytes"), (N + 900, "out was written 3600")]
)
def test_a_write_out_of_bounds_is_found(place, message):
    with pytest.raises(RuntimeError, match=message):
        one_block("write at", np.zeros(N, np.float32), place=place)


@pytest.mark.parametrize(
    ("kernel", "message"),
    [
        ("leave early", r"divergence: thread \d+ waits at the barrier module.cpp:\d+, but thread 5 has finished"),
        ("two barriers", r"different barriers, module.cpp:\d+ and module.cpp:\d+"),
        ("shuffle without a lane", r"waits at the warp operation module.cpp:\d+, but thread 3 has finished"),
        ("shuffle at two places", r"different operations, module.cpp:\d+ and module.cpp:\d+"),
        ("shuffle from outside", r"(lane 2 is read at .* which its mask does not name|is not in its own mask)"),
        ("shuffle instead of a barrier", r"different barriers"),
    ],
)
@SEEDS
def test_divergence_is_found(kernel, message, seed):
    emulated.MODULE.seed(seed)
    with pytest.raises(RuntimeError, match=message):
        one_block(kernel, np.zeros(N, np.float32))


def test_a_block_runs_after_one_that_was_stopped():
    with pytest.raises(RuntimeError):
        one_block("leave early", np.zeros(N, np.float32))
    test_shared_memory_and_barriers(0, 64)
