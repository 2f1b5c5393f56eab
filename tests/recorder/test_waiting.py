"""The outcomes that wait in memory."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from modelctl.health import Outcome
from modelctl.model import FailureType
from modelctl.recorder.waiting import WaitingOutcomes

OUTCOMES = st.builds(
    Outcome,
    st.sampled_from("ab"),
    st.sampled_from([None, None, FailureType.PARSE_ERROR, FailureType.TIMEOUT]),
    st.sampled_from([None, "x"]),
).map(lambda o: o if o.type else Outcome(o.id, None))


@given(st.lists(st.tuples(OUTCOMES, st.booleans(), st.integers(0, 5)), max_size=40))
def test_nothing_is_lost_and_each_model_keeps_its_order(
    steps: list[tuple[Outcome, bool, int]],
) -> None:
    """What is taken, in parts of any size, is what was added, in the order of each model."""
    waiting = WaitingOutcomes(1000, [FailureType.PARSE_ERROR])
    written: list[Outcome] = []
    number = 0

    def take(most: int) -> None:
        nonlocal number
        taken = waiting.take(most)
        outcomes = [outcome for entry in taken for outcome in entry.outcomes()]
        assert len(outcomes) <= most
        written.extend(outcomes)
        assert number <= waiting.finished
        number = waiting.finished

    for outcome, alone, most in steps:
        entry = waiting.add(outcome, alone=alone)
        assert entry
        assert not alone or next(entry.outcomes()) == outcome
        take(most)
    take(1000)
    assert (waiting.size, waiting.finished) == (0, waiting.last_number)
    for model in "ab":
        added = [outcome for outcome, _, _ in steps if outcome.id == model]
        assert [outcome for outcome in written if outcome.id == model] == added


def test_what_takes_memory() -> None:
    """Successes after another outcome of the model, and equal failures in a row, share its entry."""
    waiting = WaitingOutcomes(4, [FailureType.PARSE_ERROR])
    for _ in range(1000):
        assert waiting.add(Outcome("a", None))
    for _ in range(1000):
        assert waiting.add(Outcome("a", FailureType.TIMEOUT, "slow"))
    for _ in range(1000):
        assert waiting.add(Outcome("a", None))
    assert waiting.last_number == 2
    assert Counter(o.type for e in waiting.take(10_000) for o in e.outcomes()) == {
        None: 2000,
        FailureType.TIMEOUT: 1000,
    }


def test_the_last_tenth_is_for_failures_that_count() -> None:
    """When it is nearly full, only failures that count find room; then nothing does."""
    waiting = WaitingOutcomes(20, [FailureType.PARSE_ERROR])
    added = [bool(waiting.add(Outcome(f"m{n}", None))) for n in range(30)]
    assert added == [True] * 18 + [False] * 12
    assert not waiting.add(Outcome("m0", FailureType.TIMEOUT))
    added = [bool(waiting.add(Outcome("m0", FailureType.PARSE_ERROR, str(n)))) for n in range(4)]
    assert added == [True] * 2 + [False] * 2
    assert waiting.add(Outcome("m1", None))
    assert waiting.size == 21
