"""Where packets come from. One file a reader; each hands over parsed packets and counts what it could not.

To add one: implement `Reader` and name it in `make_reader` and in `config.sections.Reader`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, assert_never

from nfknock.core.packet import Packet
from nfknock.core.plan import Answer, Plan

# As many packets as are taken before timers get their turn: at 6 µs each, well below a millisecond.
PACKETS_AT_ONCE = 128
# No more than that wait to be read.
QUEUE_LENGTH = 8_192


@dataclass(slots=True)
class ReaderCounters:
    """What did not become a packet: unreadable ones, and those that the kernel had to drop before they were read."""

    unreadable: int = 0
    lost: int = 0


class Reader(Protocol):
    """A source of packets that an event loop can wait for. Every method raises ReaderError."""

    counters: ReaderCounters
    answer: Answer
    """What becomes of a packet, where that is the reader's to say; may be changed at any time."""
    lag: float
    """Seconds that a packet may have reached the kernel before it can be read."""

    def open(self) -> None:
        """Start to receive. Refuses what another program receives from already."""

    @property
    def port(self) -> int:
        """The netlink port by which the kernel knows who reads."""

    @property
    def is_drained(self) -> bool:
        """Whether the last `read` stopped because nothing more was there, and not because it had read enough."""

    def fileno(self) -> int:
        """Return the descriptor that becomes readable when there are packets."""

    def read(self, most: int = PACKETS_AT_ONCE) -> list[Packet]:
        """Return what is there, about so many at once, each with its verdict given where it waits for one.

        What cannot be read counts against `most`, so fewer than that do not mean that there are no more.
        """

    def count_lost(self) -> int:
        """Return how many packets the kernel had to drop since `open`, as far as it tells."""

    def close(self) -> None:
        """Stop to receive. Packets that come from now on are dropped by the kernel."""


def make_reader(plan: Plan) -> Reader:
    """Return the reader that this plan asks for."""
    match plan.reader:
        case "nfqueue":
            from nfknock.readers.nfqueue import NfqueueReader

            return NfqueueReader(plan.queue, plan.answer)
        case "nflog":
            from nfknock.readers.apart import ApartReader

            return ApartReader(plan.queue, plan.answer)
        case _:
            assert_never(plan.reader)


def make_stray_reader(plan: Plan) -> Reader | None:
    """Return the reader of this plan's strays, None if it wants none."""
    if plan.strays is None:
        return None
    key = "`group` under [guard]"
    if plan.reader == "nflog":
        from nfknock.readers.apart import ApartReader

        return ApartReader(plan.strays.group, key=key)
    # Whoever finds a hole in what takes packets apart would use a knock: that the daemon reads itself, with NFQUEUE.
    from nfknock.readers.nflog import NflogReader

    return NflogReader(plan.strays.group, key=key)
