"""Whatever comes, in whatever order: no hole without its full sequence in time, and memory stays bounded."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from nfknock.core.model import Door, Port
from nfknock.core.tracker import MOST_ATTEMPTS, MOST_ECHOES, MOST_SPARE_ECHOES
from tests.core.story import ACK, SYN, Story, door

DOORS = (
    door("ssh", "7000", "8000/udp", "9000"),
    door("twice", "7000", "7000", "8000", seq_timeout=2),
    door("pair", "8000/udp", "7000", close=("7000", "8000/udp")),
)
MOST_SOURCES = 4
SOURCES = [f"192.0.2.{number}" for number in range(2, 9)]
PORTS = ["7000", "8000", "8000/udp", "9000", "1234", "22"]
HONEST = "198.51.100.1"


class Strangers(RuleBasedStateMachine):
    """Sends packets and keeps a diary of its own, by which it judges every opening."""

    def __init__(self) -> None:
        super().__init__()
        self.story = Story(*DOORS, most_sources=MOST_SOURCES)
        self.diary: dict[str, list[tuple[float, Port]]] = {}
        self.runs = 0

    @rule(
        source=st.sampled_from(SOURCES),
        port=st.sampled_from(PORTS),
        flags=st.sampled_from([SYN, SYN, SYN, ACK, SYN | ACK]),
        connection=st.integers(1, 6),
    )
    def send(self, source: str, port: str, flags: int, connection: int) -> None:
        before = len(self.story.opened)
        if flags == SYN or port.endswith("udp"):
            self.diary.setdefault(source, []).append((self.story.now, Port.parse(port)))
        self.story.knock(port, source=source, flags=flags, source_port=connection, sequence_number=connection)
        for opened_for, name in self.story.opened[before:]:
            assert opened_for == source
            assert self._knocked(source, next(each for each in DOORS if each.name == name))

    @rule(seconds=st.floats(0, 3))
    def wait(self, seconds: float) -> None:
        self.story.at(self.story.now + seconds)

    @rule()
    def sweep(self) -> None:
        self.story.tick()

    @rule()
    def take_up_the_same_doors_in_another_order(self) -> None:
        self.story.tracker.replace_doors(reversed(DOORS))

    @rule()
    def knock_honestly(self) -> None:
        """A host that nobody else writes from gets in at once, as long as somebody is left who can be pushed out."""
        self.story.at(self.story.now + 10).tick()
        self.story.knock("7000", "8000/udp", "9000", source=HONEST)
        assert (HONEST, "ssh") in self.story.opened
        self.story.opened.clear()

    @invariant()
    def memory_is_bounded(self) -> None:
        tracker = self.story.tracker
        assert len(tracker) <= MOST_SOURCES
        assert sum(map(len, tracker._tiers.values())) == len(tracker)
        for source in tracker._sources.values():
            assert len(source.heard) <= min(MOST_SPARE_ECHOES + 3 * MOST_ATTEMPTS, MOST_ECHOES)
            for index, attempts in source.attempts.items():
                assert len(attempts) <= MOST_ATTEMPTS
                assert all(1 <= attempt.stage < tracker._tracks[index].length for attempt in attempts)

    def _knocked(self, source: str, opened: Door) -> bool:
        """Whether the diary has the door's sequence, in order and in time, ending with the last packet."""
        *earlier, (now, last) = self.diary[source]
        wanted = list(opened.sequence)
        if last != wanted.pop():
            return False
        first = now
        for at, port in reversed(earlier):
            if wanted and port == wanted[-1]:
                wanted.pop()
                first = at
        return not wanted and now - first <= opened.seq_timeout


TestStrangers = Strangers.TestCase
TestStrangers.settings = settings(stateful_step_count=60)


@given(
    sequence=st.lists(st.sampled_from(["1", "2", "3/udp"]), min_size=1, max_size=8),
    before=st.lists(st.sampled_from(["1", "2", "3/udp", "4"]), max_size=8),
)
def test_the_whole_sequence_always_opens_whatever_came_before(sequence: list[str], before: list[str]) -> None:
    """Also where ports repeat, so that a knock may be a first one, a next one, or both."""
    story = Story(door("ssh", *sequence)).knock(*before)
    story.opened.clear()
    assert story.knock(*sequence).opened
