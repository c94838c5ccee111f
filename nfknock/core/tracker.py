"""Who is how far at which door: the one place where stages change.

How to think about it. A door has one or two *tracks*, the sequence that opens it and the one that closes it. For each
source that is in progress there is, per track, a short list of *attempts*, each a stage and the moment of its first
knock. Behind one address two people may knock at the same door, and nothing tells whose knock it was, so attempts at
one stage are interchangeable. Of those that wait for a knock it moves one from each stage, the youngest: two people
interleaved make two attempts and two openings, a sequence that repeats a port never loses its way, and whoever gave up
half-way (an old attempt, about to run out) never costs the next one anything.

Illegal input leaves the state as it was; time only comes in as `now` (seconds, monotonic). Memory is bounded: a cap on
sources, on attempts a source may have at a track, and on packets remembered. Sources stand in tiers by the furthest
stage that they hold. When there is no room, newcomers stand in a table that is small for each and large in all
(`newcomers`), until they knock again; then the oldest of the lowest tier goes there in their place. So a flood of first
knocks can push out other first knocks, when it is very large, and nobody who is further on; and nobody holds a place by
standing still.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import ip_address

from nfknock.core.counters import Counters
from nfknock.core.decisions import CloseDoor, Command, OpenDoor, SequenceTimeout, SourceIgnored, StageReached, add_once
from nfknock.core.model import Door, Port
from nfknock.core.newcomers import MOST_NEWCOMERS, Newcomers
from nfknock.core.packet import TCP, Packet, code_of
from nfknock.core.scanners import Scanners, Thresholds
from nfknock.core.sources import is_possible_source
from nfknock.core.track import Track
from nfknock.core.unsure import Unsure

# Together these bound what strangers can make us remember.
MOST_SOURCES = 8_192
MOST_ATTEMPTS = 6
# Packets that were taken: those of as many attempts at the longest sequence, a few to spare, and never more than this.
# About 100 bytes each: with a sequence of three knocks 20 MiB for all sources together, 48 MiB at most.
MOST_SPARE_ECHOES = 5
MOST_ECHOES = 64
# A TCP client repeats its SYN for about two minutes (Linux: tcp_syn_retries 6, 127 s). Such an echo of a knock that
# was counted must be nothing even when its attempt is long over.
ECHO_TIMEOUT = 130.0
SWEPT_AT_ONCE = 4_096


@dataclass(slots=True)
class _Attempt:
    stage: int
    started_at: float


class _Source:
    """What is known of one address: its attempts by track, and the packets that were taken already."""

    __slots__ = ("attempts", "heard", "tier")

    def __init__(self) -> None:
        self.attempts: dict[int, list[_Attempt]] = {}
        self.heard: dict[int, float] = {}
        self.tier = 0


class Tracker:
    """Follows every source through every door."""

    def __init__(
        self,
        doors: Iterable[Door],
        allowed: Iterable[Port] = (),
        thresholds: Thresholds | None = None,
        *,
        most_sources: int = MOST_SOURCES,
        most_newcomers: int = MOST_NEWCOMERS,
    ) -> None:
        self.counters = Counters()
        self.scanners = Scanners(thresholds or Thresholds())
        self._most_sources = most_sources
        self._most_newcomers = most_newcomers
        self._newcomers: Newcomers | None = None
        """Only from the first time on that there was no room: a host that nobody floods does not pay for it."""
        self._sources: dict[bytes, _Source] = {}
        self._tiers: dict[int, OrderedDict[bytes, None]] = {}
        self._tracks: list[Track] = []
        self._starts: dict[int, list[int]] = {}
        self._later: frozenset[int] = frozenset()
        """Knocks that are not the first of a sequence."""
        self._whole: frozenset[int] = frozenset()
        """Knocks that are a sequence by themselves."""
        self._harmless: frozenset[int] = frozenset()
        self._knocks: frozenset[int] = frozenset()
        self._unsure = Unsure()
        self._unswept: list[bytes] = []
        self._most_echoes = MOST_SPARE_ECHOES
        self._longest_timeout = 0.0
        self.replace_doors(doors, allowed)

    def __len__(self) -> int:
        """How many sources are remembered."""
        return len(self._sources)

    def replace_doors(self, doors: Iterable[Door], allowed: Iterable[Port] = ()) -> None:
        """Follow other doors from now on; attempts at a door that did not change go on.

        `allowed` are the ports that are open to everybody: packets to them, and to what a door opens here, are nothing.
        """
        doors = tuple(doors)
        old = {track.identity: index for index, track in enumerate(self._tracks)}
        self._tracks = [Track(door, sequence, OpenDoor) for door in doors for sequence in door.sequences]
        self._tracks += [Track(door, door.close_sequence, CloseDoor) for door in doors if door.close_sequence]
        longest = max((track.length for track in self._tracks), default=0)
        self._most_echoes = min(MOST_ATTEMPTS * longest + MOST_SPARE_ECHOES, MOST_ECHOES)
        self._longest_timeout = max((door.seq_timeout for door in doors), default=0.0)
        self._starts = {}
        for index, track in enumerate(self._tracks):
            self._starts.setdefault(track.first, []).append(index)
        self._harmless = frozenset(port.code for door in doors for port in door.opens_here) | {p.code for p in allowed}
        self._knocks = frozenset(code for track in self._tracks for code in track.codes)
        self._whole = frozenset(track.first for track in self._tracks if track.length == 1)
        self._later = frozenset(code for track in self._tracks for code in track.codes[1:])
        self._unsure.clear()
        moved = {old[track.identity]: index for index, track in enumerate(self._tracks) if track.identity in old}
        for address, source in list(self._sources.items()):
            source.attempts = {moved[i]: tries for i, tries in source.attempts.items() if i in moved}
            self._settle(address, source)

    def receive(self, packet: Packet, now: float) -> list[Command]:
        """Advance every door by one packet to a knock port and say what to do next."""
        code = packet.code
        if self.scanners.ignores(packet.source, now):
            self.counters.ignored += 1
            return []
        source = self._sources.get(packet.source) or self._meet(packet, code, now)
        return self._hear(packet, source, now) if source else []

    def _meet(self, packet: Packet, code: int, now: float) -> _Source | None:
        """Return what is to be known of a source that is not followed yet, None if that is nothing more."""
        starts = self._starts.get(code)
        if starts is not None and not is_possible_source(packet.source):
            self.counters.impossible += 1
            return None
        is_crowded = len(self._sources) >= self._most_sources
        may_be_known = code in self._later or not is_crowded
        known = self._newcomers.take(packet.source) if self._newcomers and may_be_known else ()
        if starts is None and not known:
            self.counters.strays += code not in self._harmless
            return None
        if not known and is_crowded and code not in self._whole:
            self._take_in(packet, starts or (), now)
            return None
        source = _Source()
        for knock in known:
            source.heard[knock.echo] = knock.at
            # To which address it came is not remembered, so that of what comes now has to do.
            for index in self._starts.get(code_of(knock.echo), ()):
                if self._tracks[index].target in (None, packet.target) and self._tracks[index].length > 1:
                    source.attempts.setdefault(index, []).append(_Attempt(1, knock.at))
        return source

    def _take_in(self, packet: Packet, starts: Iterable[int], now: float) -> None:
        """Remember a first knock where there is no room for more."""
        unsure = self._unsure.tracks(packet.source, now)
        for index in starts:
            if self._tracks[index].hears(packet) and index not in unsure:
                self.counters.knocks += 1
                self._add_newcomer(packet.source, packet.echo, now)
                return

    def _add_newcomer(self, address: bytes, echo: int, now: float) -> None:
        if self._newcomers is None:
            self._newcomers = Newcomers(self._most_newcomers)
        # A UDP packet has no number. Who knocks from the same port once more is no echo when the first try is over.
        echo_timeout = ECHO_TIMEOUT if echo >> 16 & 0xFF == TCP else self._longest_timeout
        if now - self._newcomers.add(address, echo, now, echo_timeout) <= self._longest_timeout:
            self.counters.evicted += 1

    def receive_stray(self, packet: Packet, now: float) -> list[Command]:
        """Take a packet to a closed port that is no knock port: it ends its source's attempts at doors that hear it."""
        if packet.code in self._harmless or packet.code in self._knocks:
            return []
        self.counters.strays += 1
        ended = frozenset(index for index, track in enumerate(self._tracks) if track.hears(packet))
        if self._newcomers and ended:
            self._newcomers.take(packet.source)
        self._end_attempts(packet.source, ended)
        self._unsure.note(packet.source, ended, now)
        if not self.scanners.note(packet.source, packet.code, now):
            return []
        thresholds = self.scanners.thresholds
        return [SourceIgnored(ip_address(packet.source), thresholds.ports, thresholds.ignore_timeout)]

    def settle(self, before: float) -> None:
        """Know that every stray received before that instant came before every knock received from now on."""
        self._unsure.settle(before)

    def expire(self, now: float) -> list[Command]:
        """End what ran out of time, for some of the sources; to be called once a second or so.

        Each call takes the next few thousand, so that a crowd of them never holds up packets. What it has not come to
        yet is merely remembered longer: no attempt that is late ever advances.
        """
        commands: list[Command] = []
        self.scanners.forget(now)
        if not self._unswept:
            self._unswept = list(self._sources)
        batch, self._unswept = self._unswept[:SWEPT_AT_ONCE], self._unswept[SWEPT_AT_ONCE:]
        for address in batch:
            if source := self._sources.get(address):
                # A list for each: that each thing is said once is looked up in it.
                late: list[Command] = []
                self._drop_all_late(address, source, now, late)
                commands += late
                source.heard = {echo: at for echo, at in source.heard.items() if now - at <= ECHO_TIMEOUT}
                self._settle(address, source)
        return commands

    def _hear(self, packet: Packet, source: _Source, now: float) -> list[Command]:
        commands: list[Command] = []
        echo = packet.echo
        self._drop_all_late(packet.source, source, now, commands)
        heard_at = source.heard.get(echo)
        if heard_at is not None and now - heard_at <= ECHO_TIMEOUT:
            return commands
        unsure = self._unsure.tracks(packet.source, now)
        self._drop_attempts(source, unsure)
        concerned = {*source.attempts, *self._starts.get(packet.code, ())}
        took = [
            self._step(index, packet, source, now, commands) for index in concerned if self._tracks[index].hears(packet)
        ]
        if any(took):
            self.counters.knocks += 1
        elif (took or not concerned) and packet.code not in self._harmless:
            self.counters.strays += 1
        if took:
            self._remember(source, echo, now)
        self._drop_attempts(source, unsure)
        self._forget_finished(source)
        self._settle(packet.source, source)
        return commands

    def _step(self, index: int, packet: Packet, source: _Source, now: float, commands: list[Command]) -> bool:
        """Let one track take the packet; False if it advanced nothing and started nothing there."""
        track, code = self._tracks[index], packet.code
        attempts = source.attempts.setdefault(index, [])
        reached = 0
        # Attempts stand in the order of their first knocks, so that of each stage the last, the youngest, is kept here.
        waiting = {attempt.stage: attempt for attempt in attempts if track.codes[attempt.stage] == code}
        for attempt in waiting.values():
            attempt.stage += 1
            reached = max(reached, attempt.stage)
            if attempt.stage == track.length:
                attempts.remove(attempt)
        if code == track.first:
            reached = max(reached, 1)
            if track.length > 1:
                self._start(attempts, now)
        if not reached:
            if code not in self._harmless:
                attempts.clear()
            return False
        address = ip_address(packet.source)
        # The last knock of an opening is often the first of the closing; that is no news.
        if track.finish is OpenDoor or reached > 1:
            add_once(StageReached(track.door.name, address, reached, track.finish is CloseDoor), commands)
        if reached == track.length:
            add_once(track.finished(address), commands)
        return True

    @staticmethod
    def _start(attempts: list[_Attempt], now: float) -> None:
        if len(attempts) >= MOST_ATTEMPTS:
            # Never one that is further on; of those that are equally far the oldest.
            attempts.remove(min(attempts, key=lambda attempt: attempt.stage))
        attempts.append(_Attempt(1, now))

    def _end_attempts(self, address: bytes, ended: frozenset[int]) -> None:
        source = self._sources.get(address)
        if source is not None:
            self._drop_attempts(source, ended)
            self._forget_finished(source)
            self._settle(address, source)

    @staticmethod
    def _drop_attempts(source: _Source, ended: frozenset[int]) -> None:
        for index in ended:
            source.attempts.pop(index, None)

    def _drop_all_late(self, address: bytes, source: _Source, now: float, commands: list[Command]) -> None:
        for index, attempts in source.attempts.items():
            track = self._tracks[index]
            late = [attempt for attempt in attempts if now - attempt.started_at > track.door.seq_timeout]
            for attempt in late:
                attempts.remove(attempt)
                if track.finish is OpenDoor:
                    add_once(SequenceTimeout(track.door.name, ip_address(address), attempt.stage), commands)
        self._forget_finished(source)

    def _remember(self, source: _Source, echo: int, now: float) -> None:
        if len(source.heard) >= self._most_echoes:
            del source.heard[next(iter(source.heard))]
        source.heard[echo] = now

    @staticmethod
    def _forget_finished(source: _Source) -> None:
        """Drop tracks without attempts; with the last of them go the UDP packets that were taken.

        A UDP packet has no sequence number: a client that always knocks from one port must be able to knock again.
        """
        if all(source.attempts.values()) and source.attempts:
            return
        source.attempts = {index: attempts for index, attempts in source.attempts.items() if attempts}
        if not source.attempts:
            source.heard = {echo: at for echo, at in source.heard.items() if echo >> 16 & 0xFF == TCP}

    def _settle(self, address: bytes, source: _Source) -> None:
        """Put the source where its furthest stage belongs, or forget it if nothing of it is left."""
        known = address in self._sources
        if not source.attempts and not source.heard:
            if known:
                self._forget(address)
            return
        tier = max((attempt.stage for attempts in source.attempts.values() for attempt in attempts), default=0)
        if known:
            if tier == source.tier:
                return
            del self._tiers[source.tier][address]
        elif len(self._sources) >= self._most_sources and not self._evict(tier):
            return
        self._sources[address] = source
        source.tier = tier
        self._tiers.setdefault(tier, OrderedDict())[address] = None

    def _evict(self, tier: int) -> bool:
        """Make room for a source of this tier by the oldest of the lowest one, if that is no higher."""
        lowest = min(each for each, sources in self._tiers.items() if sources)
        if lowest > max(tier, 1):
            self.counters.evicted += 1
            return False
        address = next(iter(self._tiers[lowest]))
        self._set_back(address, self._sources[address])
        self._forget(address)
        return True

    def _set_back(self, address: bytes, source: _Source) -> None:
        """Remember a source that has to go as the newcomer that it is, unless it is more."""
        self.counters.evicted += source.tier > 1
        firsts = {index: self._tracks[index].first for index in source.attempts}
        for echo, at in source.heard.items():
            began = any(
                attempt.stage == 1 and firsts[index] == code_of(echo) and attempt.started_at == at
                for index, attempts in source.attempts.items()
                for attempt in attempts
            )
            if began:
                self._add_newcomer(address, echo, at)

    def _forget(self, address: bytes) -> None:
        del self._tiers[self._sources.pop(address).tier][address]
