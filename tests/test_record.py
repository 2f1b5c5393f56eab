"""Records are what frozen dataclasses are."""

from __future__ import annotations

import copy
import pickle
from dataclasses import FrozenInstanceError, asdict, dataclass, field, replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelctl.record import record


@record
class Ours:
    """Some fields, one with a default, one that is not shown."""

    a: Any
    b: Any = 2
    secret: Any = field(default="hidden", repr=False)


@record
class OursAndMore(Ours):
    """One more field."""

    c: Any = None


@dataclass(frozen=True, slots=True)
class Theirs:
    """The same as Python makes it."""

    a: Any
    b: Any = 2
    secret: Any = field(default="hidden", repr=False)


VALUES = st.tuples(*[st.none() | st.integers(0, 2) | st.text(max_size=2)] * 3)


@given(VALUES, VALUES)
def test_a_record_is_a_frozen_dataclass(one: Any, other: Any) -> None:
    """It compares, hashes, prints, copies and pickles like one."""
    ours, theirs = (Ours(*one), Ours(*other)), (Theirs(*one), Theirs(*other))
    assert (ours[0] == ours[1]) is (theirs[0] == theirs[1])
    assert [hash(each) for each in ours] == [hash(each) for each in theirs]
    assert [repr(each) for each in ours] == [repr(e).replace("Theirs", "Ours") for e in theirs]
    assert asdict(ours[0]) == asdict(theirs[0])
    assert replace(ours[0], a=other[0]) == Ours(other[0], *one[1:])
    assert pickle.loads(pickle.dumps(ours[0])) == copy.deepcopy(ours[0]) == ours[0]  # noqa: S301 - ours


def test_a_record_of_another_kind_is_another() -> None:
    """One with more fields is none of those with fewer, and shows all of them."""
    assert OursAndMore(1) != Ours(1)
    assert OursAndMore(1, c=3) != OursAndMore(1)
    assert repr(OursAndMore(1, c=3)) == "OursAndMore(a=1, b=2, c=3)"
    one: Any = 1
    assert Ours(1) != one


def test_a_record_is_frozen() -> None:
    """Nothing in it can be changed, and nothing added."""
    one: Any = Ours(1)
    for name in ("a", "d"):
        with pytest.raises((FrozenInstanceError, TypeError)):
            setattr(one, name, 2)
    assert not hasattr(one, "__dict__")
