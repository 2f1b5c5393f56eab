"""A sequence on disk behaves as a tuple does, whatever its length."""

from __future__ import annotations

import gc
import os
import resource
import signal
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modelctl import ModelctlError
from modelctl.spool import Spool

# Few values and every length around the batches of 1000 that are written at once.
LENGTHS = st.sampled_from([0, 1, 2, 3, 999, 1000, 1001, 1999, 2000, 2001, 3500])
VALUES = st.one_of(
    st.none(), st.booleans(), st.integers(), st.text(), st.binary(), st.tuples(st.text())
)
PLACES = st.one_of(st.none(), st.integers(-4000, 4000))
STEPS = st.one_of(st.none(), st.integers(-1500, 1500).filter(bool))
# More than the mebibyte that stays in memory.
BIG = tuple(f"{number:06}" + "x" * 400 for number in range(4321))


@st.composite
def contents(draw: st.DrawFn) -> tuple[Any, ...]:
    """Give items of all kinds, then numbers, so that the length is near a limit of the spool."""
    first = tuple(draw(st.lists(VALUES, max_size=5)))
    return first + tuple(range(draw(LENGTHS)))


@pytest.fixture(scope="module")
def big() -> Spool[str]:
    """Give a spool that is in a file."""
    return Spool(BIG)


def descriptors() -> int:
    """Return how many files this process has open."""
    return len(os.listdir("/dev/fd"))


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """Let no file of this process grow beyond *size*, as a folder that is full would."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)


# Equal to a tuple


@settings(max_examples=60, deadline=None)
@given(contents())
def test_it_is_equal_to_the_tuple_of_its_items(items: tuple[Any, ...]) -> None:
    """Length, items, order, equality in both directions and hash are those of the tuple."""
    spool = Spool(iter(items))
    assert len(spool) == len(items)
    assert bool(spool) == bool(items)
    assert tuple(spool) == items
    assert spool == items
    assert items == spool
    assert spool == list(items)
    assert spool == Spool(items)
    assert hash(spool) == hash(items)
    assert spool != (*items, "one more")
    assert (spool != items[:-1]) == bool(items)


def test_it_is_no_text_and_no_number() -> None:
    """What is no sequence of items is another thing, even where its characters are the same."""
    assert Spool("abc") != "abc"
    assert Spool() != 0
    assert Spool() is not None
    assert isinstance(Spool(), Sequence)


def test_items_are_of_any_kind(big: Spool[str]) -> None:
    """What looks for an item finds it where the tuple has it, in memory and in the file."""
    assert BIG[3000] in big
    assert "nowhere" not in big
    assert big.index(BIG[7]) == 7
    assert big.count(BIG[1234]) == 1
    assert list(reversed(Spool("abc"))) == ["c", "b", "a"]


@settings(max_examples=60, deadline=None)
@given(contents(), st.data())
def test_every_index_is_that_of_the_tuple(items: tuple[Any, ...], data: st.DataObject) -> None:
    """An index from either end gives the tuple's item, and one beyond it is an IndexError."""
    spool = Spool(items)
    for index in data.draw(st.lists(st.integers(-4000, 4000), min_size=1, max_size=5)):
        try:
            wanted = items[index]
        except IndexError:
            with pytest.raises(IndexError):
                spool[index]
        else:
            assert spool[index] == wanted


@settings(max_examples=100, deadline=None)
@given(contents(), PLACES, PLACES, STEPS)
def test_every_slice_is_that_of_the_tuple(
    items: tuple[Any, ...], start: int | None, stop: int | None, step: int | None
) -> None:
    """A slice with any start, stop and step, also backwards, is the tuple's."""
    assert Spool(items)[start:stop:step] == items[start:stop:step]


def test_a_step_of_zero_is_refused() -> None:
    """As with a tuple, a slice cannot have the step 0."""
    with pytest.raises(ValueError, match="zero"):
        Spool("abc")[::0]


# Read more than once


@settings(max_examples=40, deadline=None)
@given(contents(), st.lists(st.integers(0, 2), max_size=60))
def test_readers_do_not_disturb_each_other(items: tuple[Any, ...], turns: list[int]) -> None:
    """Three readers that take turns, and one after them, each read every item in its order."""
    spool = Spool(items)
    readers = [iter(spool) for _ in range(3)]
    read: list[list[Any]] = [[], [], []]
    for turn in turns:
        # Enough at a time to be in different batches.
        for _ in range(400):
            for item in readers[turn]:
                read[turn].append(item)
                break
    for done, reader in zip(read, readers, strict=True):
        assert (*done, *reader) == items
    assert tuple(spool) == items


def test_readers_of_a_file_do_not_disturb_each_other(big: Spool[str]) -> None:
    """Two readers in step, and an index between them, read the same items from the file."""
    for number, (one, other) in enumerate(zip(big, big, strict=True)):
        assert one == other == BIG[number]
        if number % 1500 == 0:
            assert big[-1] == BIG[-1]


def test_a_reader_goes_on_after_an_append() -> None:
    """An append during a read disturbs neither that read nor later reads."""
    spool = Spool(range(2500))
    reader = iter(spool)
    assert [next(reader) for _ in range(1500)] == list(range(1500))
    spool.append(2500)
    assert next(reader) == 1500
    assert tuple(spool) == tuple(range(2501))


# On disk


def test_more_than_a_mebibyte_is_in_a_file() -> None:
    """Beyond a mebibyte the items are in a file without a name, and stay readable."""
    before = descriptors()
    spool = Spool(BIG)
    assert descriptors() == before + 1
    assert spool == BIG
    assert spool[-5:] == BIG[-5:]
    assert spool[::1111] == BIG[::1111]


def test_little_opens_no_file() -> None:
    """What fits in memory takes no file."""
    before = descriptors()
    spool = Spool(range(5000))
    assert descriptors() == before
    assert spool[4999] == 4999


def test_its_file_has_no_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is left in the temporary folder, however the process ends."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    spool = Spool(BIG)
    assert list(tmp_path.iterdir()) == []
    assert spool[0] == BIG[0]


def test_its_file_is_closed_with_it() -> None:
    """A spool without references closes its file at once and without a warning."""
    gc.collect()  # files of earlier tests
    before = descriptors()
    with warnings.catch_warnings():
        warnings.simplefilter("error", ResourceWarning)
        spool: Spool[str] | None = Spool(BIG)
        reader: Iterator[str] | None = iter(spool or ())
        assert next(reader or iter(())) == BIG[0]
        assert descriptors() == before + 1
        spool = reader = None
        gc.collect()
    assert (spool, reader) == (None, None)
    assert descriptors() == before


def test_its_file_is_closed_when_its_source_fails() -> None:
    """What the source raises passes through, and no file stays open."""

    def failing() -> Iterator[str]:
        yield from BIG
        raise LookupError("the source is gone")

    before = descriptors()
    with pytest.raises(LookupError, match="the source is gone"):
        Spool(failing())
    gc.collect()
    assert descriptors() == before


# No room


def test_a_full_folder_is_a_clear_error() -> None:
    """The error for a full temporary folder names it and how to use another folder."""
    with files_of_at_most(200_000), pytest.raises(ModelctlError) as caught:
        Spool(BIG)
    assert tempfile.gettempdir() in caught.value.message
    assert "File too large" in caught.value.message
    assert "TMPDIR" in str(caught.value.hint)


def test_a_missing_folder_is_a_clear_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error for a missing temporary folder names it; what fits in memory needs no folder."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "gone"))
    assert len(Spool(range(3000))) == 3000
    with pytest.raises(ModelctlError, match="gone: No such file") as caught:
        Spool(BIG)
    assert "TMPDIR" in str(caught.value.hint)


@pytest.mark.parametrize(
    ("items", "shown"),
    [
        ((), "Spool([], length=0)"),
        ("ab", "Spool(['a', 'b'], length=2)"),
        (range(5), "Spool([0, 1, 2, ...], length=5)"),
    ],
)
def test_its_repr_is_short(items: Sequence[Any], shown: str) -> None:
    """A debugger shows the first items and how many there are."""
    assert repr(Spool(items)) == shown
