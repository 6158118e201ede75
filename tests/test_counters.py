from __future__ import annotations

from syslogger.counters import Counters, Histogram


def test_a_value_is_counted_in_the_first_bucket_that_holds_it() -> None:
    histogram = Histogram(1, 10)
    for value in (0, 1, 1.5, 10, 11, 1000):
        histogram.observe(value)
    assert histogram.counts == [2, 2, 2]
    assert (histogram.count, histogram.sum) == (6, 1023.5)


def test_only_the_newest_values_are_kept() -> None:
    histogram = Histogram(1)
    for value in range(2000):
        histogram.observe(value)
    assert list(histogram.recent) == list(range(2000 - 1024, 2000))


def test_every_program_counts_for_itself() -> None:
    one, other = Counters(), Counters()
    one.records_cut["size"] += 1
    one.delivery_seconds.observe(1)
    assert other.records_cut == {}
    assert other.delivery_seconds.count == 0
