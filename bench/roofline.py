"""Predicted times on GPUs that nobody here has timed: bytes, operations and launches of each op, with what peers published.

``python bench/roofline.py`` prints a PREDICTION, no measurement. A launch takes the longest of three times: its bytes at 90 %
of the memory's bandwidth, its operations at half of the peak of float32 without tensor cores, and 3 us, in which a GPU
starts and ends a small kernel. Launches of one call come one after the other. 90 % is what quack reports for its memory-bound
kernels on an H100 (3 of 3.35 TB/s); for the other devices it is assumed. Bytes and operations are those of
``ladderkern.testing.work``; ``make traffic`` shows that the Triton kernels move no more. Peers' figures are their authors'.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from ladderkern.runtime.text import text_table
from ladderkern.testing import work
from ladderkern.testing.work import Work

SHARE_OF_BANDWIDTH, SHARE_OF_PEAK, LEAST_LAUNCH = 0.9, 0.5, 3e-6
F32, BF16 = torch.float32, torch.bfloat16


class Device(NamedTuple):
    """Peaks of a GPU by its maker's data sheet: bytes a second, float32 operations a second without tensor cores."""

    bandwidth: float
    operations: float

    def times(self, launch: Work) -> dict[str, float]:
        """What each limit alone makes of a launch, in seconds; the longest is its predicted time."""
        return {
            "memory": launch.bytes / (SHARE_OF_BANDWIDTH * self.bandwidth),
            "arithmetic": launch.operations / (SHARE_OF_PEAK * self.operations),
            "launch": LEAST_LAUNCH,
        }


DEVICES = {
    "A100": Device(2.04e12, 19.5e12),
    "H100": Device(3.35e12, 67e12),
    "H200": Device(4.8e12, 67e12),
    "B200": Device(8.0e12, 75e12),
    "MI300X": Device(5.3e12, 163e12),
}


class Call(NamedTuple):
    """A call: its launches, and what peers published for a comparable one, if any did."""

    name: str
    launches: tuple[Work, ...]
    peers: str = ""


def norm_backward(rows: int, hidden: int, dtype: torch.dtype) -> tuple[Work, ...]:
    """Both launches of the backward, with partial sums of 256 programs."""
    sums = work.partial_sums(min(rows, 256), hidden, dtype, dtype)
    backward = work.norm_backward(rows, hidden, dtype, dtype)
    return backward._replace(stores=backward.stores + sums.loads), sums


def norm_of_training(hidden: int, **peers: tuple[float, float, float]) -> list[Call]:
    """Forward and backward of 2048 rows; ``peers``: milliseconds on an H100 of Liger fused, Liger in two, Hugging Face."""
    launches = {"forward": (work.norm_forward(2048, hidden, F32, F32),), "backward": norm_backward(2048, hidden, F32)}
    return [
        Call(
            f"add_rms_norm {name}, 2048 x {hidden}, float32",
            launches[name],
            f"H100 Liger fused {fused:.3f}, norm and add {two:.3f}, Hugging Face {eager:.3f} ms",
        )
        for name, (fused, two, eager) in peers.items()
    ]


def joint(rows: work.Rows, columns: int, codes: int) -> tuple[Work, ...]:
    """Forward and backward of cross-entropy with discrepancy."""
    return work.joint_forward(rows, columns, codes, BF16), work.joint_backward(rows, columns, codes, BF16)


def discrepancy(rows: work.Rows, columns: int, codes: int) -> tuple[Work, ...]:
    """Forward and backward of the discrepancy alone."""
    return (
        work.discrepancy_forward(rows, codes, BF16),
        work.discrepancy_backward(rows, columns, codes, BF16),
    )


def calls() -> list[Call]:
    """What is predicted, with the shapes for which peers published figures."""
    billion, image = 10**9, work.Rows(1024, 1024)
    steps, responses = 25_697, 3_400  # ProcessBench
    prm = work.prm_forward(steps, responses, 2, BF16), work.prm_backward(steps, responses, 2, BF16)
    cross_entropy = "only cross-entropy: "
    return [
        Call("SPAM step, 1e9 parameters, float32", (work.spam_step(billion, F32, F32, F32),)),
        Call("SPAM step, 1e9, bfloat16 with float32 moments", (work.spam_step(billion, BF16, BF16, F32),)),
        Call(
            "SPAM step, 1e9, float32, density 1/4 (row)", (work.spam_step(billion, F32, F32, F32, density=0.25, row_mask=True),)
        ),
        Call("SPAM step, 1e6 parameters, float32", (work.spam_step(10**6, F32, F32, F32),)),
        Call("discrepancy, 1024 image tokens, V 65,536, N 8192, fwd + bwd", discrepancy(image, 65_536, 8192)),
        Call(
            "cross-entropy + discrepancy, T 8192 (half image), V 65,536, fwd + bwd",
            joint(work.Rows(8192, 4096), 65_536, 8192),
            cross_entropy + "H100 Liger vocab-parallel 4.02, Megatron fused 8.98, unfused 10.67 ms",
        ),
        Call(
            "the same without image rows, T 16,384, V 65,536",
            joint(work.Rows(16_384, 0), 65_536, 8192),
            cross_entropy + "A100 Liger 11.9, Hugging Face 30.8 ms",
        ),
        Call(
            "the same without image rows, T 16,384, V 8192",
            joint(work.Rows(16_384, 0), 8192, 1024),
            cross_entropy + "A100 Liger 1.46, Hugging Face 3.60 ms",
        ),
        Call(
            "PRM scores, 25,697 steps of 3,400 responses, fwd + bwd",
            prm,
            "4,100 launches for 512 responses: the Qwen model card",
        ),
        *norm_of_training(4096, forward=(0.050, 0.096, 0.149), backward=(0.125, 0.212, 0.393)),
        *norm_of_training(8192, forward=(0.095, 0.177, 0.271), backward=(0.154, 0.386, 0.721)),
        Call(
            "add_rms_norm forward, 1 x 8192, bfloat16 (decode)",
            (work.norm_forward(1, 8192, BF16, BF16),),
            "Megatron fused 4.11 us",
        ),
    ]


def lines() -> list[tuple[str, ...]]:
    """A line a call."""
    table = []
    for call in calls():
        total = Work(*(sum(column) for column in zip(*call.launches, strict=True)))
        predicted = {name: [device.times(launch) for launch in call.launches] for name, device in DEVICES.items()}
        limits = dict.fromkeys(max(times, key=times.__getitem__) for times in predicted["H100"])
        milliseconds = [f"{1e3 * sum(max(times.values()) for times in launches):.3f}" for launches in predicted.values()]
        counts = f"{total.bytes / 1e6:,.1f}", f"{total.operations / 1e9:,.2f}", str(len(call.launches))
        table.append((call.name, *counts, *milliseconds, " + ".join(limits), call.peers))
    return table


def main() -> None:
    """Print the sheet."""
    assumptions = " ".join(str(__doc__).split("no measurement. ")[1].split())
    heading = ("call", "MB", "GFLOP", "launches", *DEVICES, "limit on H100", "published by peers (theirs, not ours)")
    print(f"PREDICTED milliseconds, not measured. {assumptions}\n\n{text_table(heading, lines())}")


if __name__ == "__main__":
    main()
