"""What the predictor knows of hardware: how fast a device computes, and how long an all-reduce takes on a link.

The ``basis`` of an entry says where its numbers come from: a fit to runs that others published (:mod:`.published` holds them),
somebody's measurement, an assumption, or a measurement here (:func:`.calibrate`). A fit describes the software that ran as much
as the hardware: decode in CUDA graphs, attention without a flash kernel, NCCL.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

KIB, MIB = 2**10, 2**20


class AlphaBeta(NamedTuple):
    """The seconds of an all-reduce of S bytes, alpha + S / bandwidth. The bandwidth counts each byte of the tensor once.

    >>> ladderkern.ladder.AlphaBeta(alpha=1e-5, bandwidth=1e11).seconds(1e6)
    2e-05
    """

    alpha: float  # seconds
    bandwidth: float  # bytes a second

    def seconds(self, size: float) -> float:
        """Of an all-reduce of a tensor of ``size`` bytes on each rank."""
        return self.alpha + size / self.bandwidth


class Link(NamedTuple):
    """All-reduces of one kind, and how much of them a ladder hid.

    Libraries switch protocols with the size: an all-reduce takes the least of several AlphaBeta. World sizes between two that
    are given are interpolated; beyond them the nearest serves.
    """

    title: str
    protocols: Mapping[int, tuple[AlphaBeta, ...]]  # by world size
    basis: str
    hidden_small_batch: float = 0.80  # the share of all-reduce time hidden by a ladder, for a batch of at most 4,
    hidden_large_batch: float = 0.65  # and of at least 16
    hidden_of_possible: float = 0.88  # at most this part of what a perfect overlap would hide

    def seconds(self, size: float, world_size: int) -> float:
        """Of an all-reduce of a tensor of ``size`` bytes on each rank; 0 for a single rank."""
        if world_size == 1:
            return 0.0
        worlds = sorted(self.protocols)
        low = max((world for world in worlds if world <= world_size), default=worlds[0])
        high = min((world for world in worlds if world >= world_size), default=worlds[-1])
        first, last = (min(p.seconds(size) for p in self.protocols[world]) for world in (low, high))
        return first if low == high else first + (last - first) * (world_size - low) / (high - low)

    def hidden_share(self, batch: int) -> float:
        """The fitted share of all-reduce time that a ladder hides; between batch 4 and 16 it falls evenly."""
        towards_large = min(max(batch - 4, 0) / 12, 1.0)
        return self.hidden_small_batch + (self.hidden_large_batch - self.hidden_small_batch) * towards_large

    def times(self, factor: float) -> Link:
        """A link whose every all-reduce takes ``factor`` as long."""
        scaled = {
            world: tuple(AlphaBeta(p.alpha * factor, p.bandwidth / factor) for p in protocols)
            for world, protocols in self.protocols.items()
        }
        return self._replace(protocols=scaled)


class Device(NamedTuple):
    """One accelerator under a 16-bit decoder."""

    title: str
    vector_bandwidth: float  # bytes a second of weights read for one token
    matrix_bandwidth: float  # the same for several
    matmul_rate: float  # FLOP a second, for prompts and large batches
    layer_overhead: float  # seconds of a layer that no byte explains
    cache_traffic: float  # times that the KV cache is moved in one step
    basis: str


def _protocols(*pairs: tuple[float, float]) -> tuple[AlphaBeta, ...]:
    """From (microseconds, gigabytes a second)."""
    return tuple(AlphaBeta(microseconds * 1e-6, gigabytes * 1e9) for microseconds, gigabytes in pairs)


DEVICES = {
    "h100": Device(
        "H100 SXM",
        vector_bandwidth=3.14e12,
        matrix_bandwidth=2.73e12,
        matmul_rate=550e12,
        layer_overhead=33e-6,
        cache_traffic=9.5,
        basis="fit to the published runs without communication (70B); the matmul rate is an assumption",
    ),
}

LINKS = {
    "nvlink": Link(
        "NVLink, NCCL",
        {
            2: _protocols((15, 25), (54, 228)),
            4: _protocols((14.5, 63), (54, 228)),
            8: _protocols((24, 93), (54, 228)),
        },
        "fit to the published 70B runs; from 2 MiB on TokenWeave's measurements (8 x H100)",
    ),
    "no-p2p": Link(
        "H100 without P2P (NCCL_P2P_DISABLE=1)",
        {
            2: _protocols((13.5, 1.5), (44, 150)),
            4: _protocols((21.5, 4), (37, 130)),
            8: _protocols((60, 5.6), (88, 130)),
        },
        "fit to the published 70B runs",
        hidden_small_batch=0.87,
        hidden_large_batch=0.54,
    ),
    "fast": Link(
        "NVLink, one-shot or multimem all-reduce",
        {2: _protocols((5, 450)), 4: _protocols((6, 150), (12.5, 275)), 8: _protocols((7, 64), (12.5, 275))},
        "assumption for one-shot kernels (5 to 10 us are reported); at TP 8 from 1 MiB on TokenWeave's multimem measurements "
        "(8 x H100); the hidden share is NCCL's",
    ),
    "pcie": Link(
        "PCIe",
        {2: _protocols((20, 20)), 4: _protocols((35, 14)), 8: _protocols((70, 11))},
        "assumption: calibrate yours",
    ),
    "two-nodes": Link(
        "two nodes of 8 H100",
        {16: _protocols((43, 14), (68, 130))},
        "fit to the published 405B speed-ups at TP 16, on predicted compute",
        hidden_small_batch=0.74,
        hidden_large_batch=0.69,
    ),
    "two-nodes-no-p2p": Link(
        "two nodes of 8 H100 without P2P",
        {16: _protocols((88, 4), (128, 130))},
        "fit to the published 405B speed-ups at TP 16, on predicted compute",
        hidden_small_batch=0.63,
        hidden_large_batch=0.56,
    ),
}

PARALLEL_LAYER_SAVING = 4.6e-6  # seconds: one norm and fewer, larger matmuls; fit to the published parallel blocks


def link_of(link: Any) -> Link:
    """A Link from the name of one of LINKS, a Link, or an AlphaBeta (which then serves every world size).

    Raises:
        ValueError: a name that is not known.
        TypeError: anything else.
    """
    if isinstance(link, Link):
        return link
    if isinstance(link, AlphaBeta):
        title = f"given: {1e6 * link.alpha:.3g} us + {1e-9 * link.bandwidth:.3g} GB/s"
        return Link(title, {2: (link,)}, "given; the hidden share is that of NVLink with NCCL")
    if not isinstance(link, str):
        raise TypeError(f"link must be a name, a Link or an AlphaBeta, got {type(link).__name__}")
    if link not in LINKS:
        raise ValueError(f"link must be one of {', '.join(LINKS)}, a Link or an AlphaBeta, got {link!r}")
    return LINKS[link]


def device_of(device: Any) -> Device:
    """A Device from the name of one of DEVICES, or a Device.

    Raises:
        ValueError: a name that is not known.
    """
    if isinstance(device, Device):
        return device
    if device not in DEVICES:
        raise ValueError(f"device must be one of {', '.join(DEVICES)} or a Device, got {device!r}")
    return DEVICES[device]
