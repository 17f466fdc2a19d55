"""What the harness that runs CUDA kernels on the CPU notices."""

from __future__ import annotations

import random

import numpy as np
import pytest

ORDERS = ["ascending", "descending", "shuffled"]


def in_every_order(harness, run):
    results = []
    for order in ORDERS:
        harness.set_order(order, 1)
        results.append(run())
    harness.set_order("ascending", 0)
    return results


def test_a_barrier_makes_threads_see_their_neighbours(harness):
    x = np.arange(96, dtype=np.float32)
    for y in in_every_order(harness, lambda: harness.rotate(x, True)):
        np.testing.assert_array_equal(y, np.roll(x, -1))


def test_a_missing_barrier_reads_nan_or_depends_on_the_order(harness):
    x = np.arange(96, dtype=np.float32)
    results = in_every_order(harness, lambda: harness.rotate(x, False))
    assert all(np.isnan(y).any() for y in results)
    assert not np.array_equal(results[0], results[1], equal_nan=True)


@pytest.mark.parametrize("kernel", ["half_of_the_threads_wait", "two_barriers"])
def test_barrier_divergence_is_an_error(harness, kernel):
    with pytest.raises(RuntimeError, match="barrier divergence"):
        getattr(harness, kernel)()
    harness.rotate(np.zeros(64, np.float32), True)  # and the next launch is unharmed


def test_warp_shuffles_stay_within_a_warp(harness):
    x = np.arange(64, dtype=np.float32)
    for y in in_every_order(harness, lambda: harness.warp_sum(x)):
        np.testing.assert_array_equal(y, np.repeat(x.reshape(2, 32).sum(1), 32))
    for y in in_every_order(harness, lambda: harness.shift_down(x)):
        np.testing.assert_array_equal(y, np.where(x % 32 == 31, x, x + 1))


@pytest.mark.parametrize("threads", [32, 64, 96, 256])  # whole warps
def test_sums_over_a_block_give_every_thread_the_same_bits(harness, threads):
    x = np.random.default_rng(0).standard_normal(threads).astype(np.float32)
    results = in_every_order(harness, lambda: harness.block_sum(x))
    assert len({float(value) for y in results for value in y}) == 1
    once = x.sum(dtype=np.float64)
    np.testing.assert_allclose(results[0][0], once + 2 * once + threads * once + threads, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("grid_y", "threads", "shared_bytes"),
    [(65536, 32, 0), (1, 2048, 0), (1, 32, (48 << 10) + 1)],
    ids=["grid-y", "threads", "shared"],
)
def test_what_a_gpu_refuses_is_refused(harness, grid_y, threads, shared_bytes):
    with pytest.raises(RuntimeError, match="invalid launch"):
        harness.launch(grid_y, threads, shared_bytes)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        ("write_at(10, 10)", "heap-buffer-overflow"),
        ("write_at(10, -1)", "heap-buffer-overflow"),
        ("write_shared(10, 10)", "heap-buffer-overflow"),
        ("write_four_at(10, 1)", "misaligned address"),
    ],
)
def test_an_access_out_of_bounds_or_misaligned_is_caught(sanitized, call, message):
    done = sanitized("harness_host.cpp", f"host.{call}; print('survived')")
    assert done.returncode != 0 and message in done.stderr and "survived" not in done.stdout


def test_a_divisor_divides_as_integers_do(harness):
    chance = random.Random(0)
    divisors = [1, 2, 3, 2**31 - 1, 2**31, 2**62, 2**63 - 1, *(chance.randrange(1, 2 ** (k + 1)) for k in range(63))]
    for divisor in divisors:
        near = [q * divisor + d for q in (0, 1, 2, (2**63 - 2) // divisor) for d in (-1, 0, 1)]
        for x in [0, 2**63 - 1, *near, *(chance.randrange(2 ** (k + 1)) for k in range(63))]:
            if 0 <= x < 2**63:
                assert harness.divided(x, divisor) == divmod(x, divisor)


def test_a_correct_kernel_passes_the_sanitizers(sanitized):
    program = """
import numpy as np
for order in ["ascending", "descending", "shuffled"]:
    host.set_order(order, 1)
    host.write_at(10, 9), host.write_shared(10, 9), host.write_four_at(10, 4)
    host.rotate(np.zeros(96, np.float32), True), host.block_sum(np.zeros(64, np.float32))
try:
    host.two_barriers()
except RuntimeError:
    host.rotate(np.zeros(64, np.float32), True)
    print("passed")
"""
    done = sanitized("harness_host.cpp", program)
    assert done.returncode == 0 and "passed" in done.stdout, done.stderr
