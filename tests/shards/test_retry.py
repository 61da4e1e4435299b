import pickle

import pytest

from shards.store.retry import FIRST_PAUSE, LONGEST_PAUSE, Retries, longest_pause
from shards.store.statistics import Statistics


class Time:
    """A clock that sleeping moves on."""

    def __init__(self) -> None:
        self.now = 0.0
        self.pauses: list[float] = []

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        self.pauses.append(seconds)


def retries_of(time: Time, patience: float) -> Retries:
    return Retries(patience, time.sleep, lambda: time.now)


def test_pauses_double_up_to_the_longest() -> None:
    pauses = [longest_pause(attempt) for attempt in range(12)]
    assert pauses[:3] == [FIRST_PAUSE, 2 * FIRST_PAUSE, 4 * FIRST_PAUSE] and pauses[-1] == LONGEST_PAUSE
    assert longest_pause(10_000) == LONGEST_PAUSE


def test_gives_up_when_patience_is_spent() -> None:
    time = Time()
    retries = retries_of(time, patience=60)
    with pytest.raises(ConnectionError, match=r"server away\. Gave up after \d\d s without progress\."):
        while True:
            retries.failed(ConnectionError("server away."))
    assert 40 < time.now <= 60
    assert all(longest_pause(i) / 2 <= pause <= longest_pause(i) for i, pause in enumerate(time.pauses))
    assert len({pause / longest_pause(i) for i, pause in enumerate(time.pauses)}) > 3  # jitter


def test_progress_starts_patience_anew() -> None:
    time = Time()
    retries = retries_of(time, patience=5)
    for _ in range(100):
        retries.failed(ConnectionError("cut"))
        retries.went_forward()
    assert time.now > 5 and max(time.pauses) <= FIRST_PAUSE


def test_no_longer_wanted() -> None:
    with pytest.raises(ConnectionError, match=r"^cut$"):
        Retries(300, sleep=lambda seconds: True).failed(ConnectionError("cut"))


def test_copies_count_together() -> None:
    statistics = Statistics()
    statistics.add(requests=2, bytes=10)
    copy = pickle.loads(pickle.dumps(statistics))  # in this process: the same file
    copy.add(requests=1)
    assert copy.as_dict()["bytes"] == 10
    statistics.add(bytes=1)
    assert statistics.as_dict() == copy.as_dict() != {}
    assert statistics.as_dict()["requests"] == 3 and statistics.as_dict()["bytes"] == 11


def test_a_copy_elsewhere_counts_alone() -> None:
    statistics = Statistics("/nowhere/at/all")
    statistics.add(requests=2)
    assert statistics.as_dict()["requests"] == 2
