"""The benchmark's arithmetic, its table, its JSON, its lines, and the README's section. It measures nothing."""

from __future__ import annotations

import itertools
import os
import re
import socket
import threading
import time
from pathlib import Path

import msgspec
import pytest

from bench import figures, lines, load, relp, report, works
from bench.arrivals import Counter
from bench.figures import Compared, Curve, Results, Runs
from bench.measure import Helper, Refused, accepted, cpu_seconds, unread_bytes
from bench.works import Burst, Goal, Paced

ROOT = Path(__file__).parent.parent


def compared(
    ours: list[float], *peers: list[float], figure: works.Figure = "cpu", goal: Goal | None = None
) -> Compared:
    forwarders = {"syslogger": Runs([{figure: value} for value in ours])}
    forwarders |= {f"peer-{at}": Runs([{figure: value} for value in values]) for at, values in enumerate(peers)}
    return Compared("work", "A work", [goal] if goal else [], forwarders)


def results(*found: Compared, quick: bool = False) -> Results:
    return Results("2026-11-21", "a machine", {"syslogger": "1.0"}, rounds=5, quick=quick, works=list(found))


# Figures


@pytest.mark.parametrize(("share", "value"), [(0.5, 50), (0.99, 99), (0.999, 100), (0.0, 1), (1.0, 100)])
def test_a_percentile_is_a_value_that_was_measured(share: float, value: int) -> None:
    assert figures.percentile(range(1, 101), share) == value
    assert figures.percentile([7], share) == 7


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.754, "0.75"),
        (9.999, "10.00"),
        (10.04, "10.0"),
        (650_123, "650,000"),
        (288.4, "288"),
        (0, "0.00"),
        (-0.5, "-0.50"),
    ],
)
def test_a_figure_is_shown_with_three_digits(value: float, text: str) -> None:
    assert figures.shown(value) == text


def test_a_cell_is_the_median_between_the_least_and_the_most() -> None:
    assert figures.spread([3, 1, 2]) == "2.00 (1.00–3.00)"
    assert figures.spread([1]) == "1.00"
    assert figures.spread([]) == "–"


def test_the_best_peer_has_the_lowest_cost_and_the_highest_rate() -> None:
    assert compared([0.5], [2.0], [1.0]).best_peer("cpu") == 1.0
    assert compared([0.5], [2.0], [1.0]).ratio("cpu") == 0.5
    assert compared([3.0], [2.0], [1.0], figure="rate").best_peer("rate") == 2.0
    assert compared([3.0]).best_peer("cpu") is None
    assert compared([3.0], []).ratio("cpu") is None


@pytest.mark.parametrize(
    ("figure", "against", "bound", "ours", "reached"),
    [
        ("cpu", "ratio to the best peer", 0.4, 0.4, True),
        ("cpu", "ratio to the best peer", 0.4, 0.41, False),
        ("rate", "ratio to the best peer", 1.0, 1.0, True),
        ("rate", "ratio to the best peer", 1.0, 0.99, False),
        ("p99", "more than the best peer", 1.0, 2.0, True),
        ("p99", "more than the best peer", 1.0, 2.1, False),
        ("rss", "value", 64.0, 64.0, True),
        ("rss", "value", 64.0, 65.0, False),
    ],
)
def test_a_goal(figure: works.Figure, against: works.Against, bound: float, ours: float, *, reached: bool) -> None:
    goal = Goal(figure, against, bound)
    assert compared([ours], [1.0], figure=figure).reached(goal) is reached
    assert compared([], [1.0], figure=figure).reached(goal) is None


def test_without_a_peer_only_a_value_is_judged() -> None:
    assert compared([1.0]).reached(Goal("cpu", "ratio to the best peer", 0.4)) is None
    assert compared([1.0], figure="rss").reached(Goal("rss", "value", 64.0)) is True


def test_the_table() -> None:
    work = compared([0.5, 0.7, 0.6], [1.0, 1.0, 1.0], [], goal=Goal("cpu", "ratio to the best peer", 0.4))
    work.forwarders["peer-1"].refused.append("it lost one")
    head, _, title, row, refused = figures.table([work]).splitlines()
    assert head.split() == ["syslogger", "peer-0", "peer-1", "ratio", "goal"]
    assert title == "A work"
    assert re.split(r"\s{2,}", row.strip()) == [
        "CPU-seconds per million messages",
        "0.60 (0.50–0.70)",
        "1.00 (1.00–1.00)",
        "–",
        "0.60",
        "≤ 0.4 × MISSED",
    ]
    assert refused == "REFUSED  A work: peer-1: it lost one"


def test_json_and_back(tmp_path: Path) -> None:
    before = results(compared([0.5], [1.0], goal=Goal("cpu", "value", 1.0)), quick=True)
    before.save(tmp_path / "results.json")
    assert Results.load(tmp_path / "results.json") == before
    (tmp_path / "results.json").write_text("{}")
    with pytest.raises(msgspec.ValidationError):
        Results.load(tmp_path / "results.json")


def test_curves_and_where_they_are_too_steep() -> None:
    def at(name: str, cost: float) -> Compared:
        return Compared(name, name, [], {"syslogger": Runs([{"cpu": cost}])})

    found = figures.curves(
        [at("100-connections", 3.0), at("10-connections", 2.0), at("50-bytes", 1.0), at("zstd", 1.0)]
    )
    assert found == [
        Curve("connections", "syslogger", ((10, 2.0), (100, 3.0))),
        Curve("bytes", "syslogger", ((50, 1.0),)),
    ]
    assert found[0].worse_than_linear() == []
    assert Curve("bytes", "x", ((1, 1.0), (10, 10.9), (20, 40.0))).worse_than_linear() == [(10, 20)]


# Works


def test_works_have_names_of_their_own_and_goals_for_what_they_measure() -> None:
    everything = works.WORKS + works.GROWTH_CONNECTIONS + works.GROWTH_SIZES
    assert len({work.name for work in everything}) == len(everything)
    for work in works.WORKS:
        figures_of = {
            Burst: {"cpu", "rate", "rss"},
            Paced: {"cpu", "rss", "p50", "p99", "p999"},
            works.Outage: {"rss", "growth"},
            works.Starts: {"ready", "help"},
        }[type(work.load)]
        assert {goal.figure for goal in work.goals} <= figures_of
    assert {work.name for work in works.quick(works.WORKS)} < {work.name for work in works.WORKS}


def test_a_work_can_be_scaled() -> None:
    by_name = {work.name: work for work in works.WORKS}
    assert works.scaled(by_name["one-connection"], 0.01).load == Burst(10_000)
    assert works.scaled(by_name["hundred"], 0.2).load == Paced(100, 10_000, 2)
    with pytest.raises(ValueError, match="at least 71"):
        Paced(1, 1, 1, size=70)


# Lines


@pytest.mark.parametrize("size", [50, 156, 65_536])
def test_fixed_lines_have_their_size_and_number(size: int) -> None:
    line = lines.fixed(size)(123_456)
    assert len(line) == size
    assert lines.number(line[:-1]) == 123_456


def test_mixed_lines_are_as_long_as_real_ones_and_the_same_every_time() -> None:
    found = [lines.mixed()(each) for each in (0, 1)]
    render = lines.mixed()
    assert found == [render(0), render(1)]
    sizes = {len(render(each)) for each in range(20_011)}
    assert min(sizes) >= 60
    assert 1400 < max(sizes) <= 1500
    assert all(render(each).count(b"\n") == 1 and lines.number(render(each)[:-1]) == each for each in range(20_011))


def test_timed_lines() -> None:
    line = lines.timed(156)(987_654_321, 7)
    assert len(line) == 156
    assert (lines.sent_at(line[:-1]), lines.number(line[:-1])) == (987_654_321, 7)


def test_what_has_no_number() -> None:
    assert lines.number(lines.PRIME) == -1
    assert lines.number(b"") == -1
    assert lines.number(b"x #12345678x") == -1


def test_a_file_of_lines(tmp_path: Path) -> None:
    lines.render(tmp_path / "lines", lines.fixed(60), 100_001)
    found = (tmp_path / "lines").read_bytes().splitlines()
    assert [lines.number(each) for each in found] == list(range(100_001))


# Counting


def test_every_number_is_counted_once() -> None:
    counter = Counter(4, lambda each, line: line != b"changed #%09d" % each)
    for line in (lines.PRIME, b"x #000000000", b"x #000000003", b"x #000000003", b"changed #000000002", b"no number"):
        counter.count(line)
    counter.count(b"x #000000004")
    account = counter.account
    assert (account.arrived, account.lost, account.twice, account.foreign) == (2, 2, 1, 3)


# The load


@pytest.mark.parametrize("connections", [1, 7])
def test_a_burst_is_shared_out_among_the_connections_by_whole_lines(connections: int) -> None:
    payload = b"".join(map(lines.fixed(100), range(1000)))
    with received(connections) as (sockets, found):
        assert load.burst(sockets, payload) == len(payload)
    assert b"".join(found) == payload
    assert all(part.endswith(b"\n") for part in found)
    assert max(map(len, found)) - min(map(len, found)) <= 200


def test_a_paced_load_keeps_its_pace_and_goes_round_the_connections() -> None:
    with received(3) as (sockets, found):
        before = time.monotonic()
        assert load.paced(sockets, per_second=1000, seconds=0.3, size=156) == 300
        assert time.monotonic() - before >= 0.3
    numbers = [[lines.number(line) for line in part.splitlines()] for part in found]
    assert numbers == [list(range(at, 300, 3)) for at in range(3)]
    times = [lines.sent_at(line) for line in found[0].splitlines()]
    assert all(one < other for one, other in itertools.pairwise(times))


class received:  # noqa: N801 - reads as one
    """So many connections to somebody who reads them, and what each brought, when all is over."""

    def __init__(self, count: int) -> None:
        pairs = [socket.socketpair() for _ in range(count)]
        self.near = [near for near, _ in pairs]
        self.far = [far for _, far in pairs]
        self.found = [b""] * count
        self.threads = [threading.Thread(target=self._read, args=(at,)) for at in range(count)]

    def _read(self, at: int) -> None:
        with self.far[at] as sock:
            self.found[at] = b"".join(iter(lambda: sock.recv(65_536), b""))

    def __enter__(self) -> tuple[list[socket.socket], list[bytes]]:
        for thread in self.threads:
            thread.start()
        return self.near, self.found

    def __exit__(self, *_: object) -> None:
        for sock in self.near:
            sock.close()
        for thread in self.threads:
            thread.join()


def answering(sock: socket.socket, found: list[bytes]) -> None:
    """Answer as a RELP receiver, late: never before a window is full, or all has come."""
    unanswered: list[bytes] = []
    with sock, sock.makefile("rb") as file:
        opened = [next(file) for _ in range(3)]
        assert opened[0] == b"1 open %d relp_version=0\n" % (len(b"".join(opened)) - len(b"1 open 50 \n"))
        sock.sendall(b"1 rsp 31 200 OK\nrelp_version=0\ncommands=\n")
        for frame in file:
            number, command, length, text = frame[:-1].split(b" ", 3)
            assert command == b"syslog"
            assert int(length) == len(text)
            found.append(text)
            unanswered.append(number)
            assert len(unanswered) <= relp.WINDOW
            if len(unanswered) == relp.WINDOW or text.endswith(b"999"):
                sock.sendall(b"".join(each + b" rsp 6 200 OK\n" for each in unanswered))
                unanswered.clear()


def test_a_relp_burst_is_sent_with_a_window_and_ends_when_all_is_answered() -> None:
    near, far = socket.socketpair()
    found: list[bytes] = []
    thread = threading.Thread(target=answering, args=(far, found))
    thread.start()
    payload = b"".join(map(lines.fixed(100), range(1000)))
    with near:
        relp.burst([relp.Session(near)], payload)
        assert len(found) == 1000
    thread.join()
    assert b"".join(line + b"\n" for line in found) == payload


# What is read from the kernel


def test_connections_in_the_backlog_are_not_accepted() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        with socket.create_connection(("127.0.0.1", port)) as one, socket.create_connection(("127.0.0.1", port)):
            assert accepted(port) == 0
            with listener.accept()[0]:
                one.sendall(b"12345")
                assert unread_bytes(port) == [5]


def test_processor_time_is_this_process_s() -> None:
    before, own = cpu_seconds(os.getpid()), time.process_time()
    while time.process_time() - own < 0.2:
        pass
    assert cpu_seconds(os.getpid()) - before == pytest.approx(0.2, abs=0.1)


def test_a_helper_that_ends_or_says_nothing_is_refused() -> None:
    with Helper("bench.load", port=1, connections=0, per_second=1, seconds=0, size=156) as helper:
        assert helper.expect(20) == {"connected": 0}
        with pytest.raises(Refused, match="said nothing"):
            helper.expect(0.01)
        helper.go()
        assert set(helper.expect(20)) == {"begun", "seconds"}
        helper.go()
        with pytest.raises(Refused, match="has ended"):
            helper.expect(20)


# The README


def test_the_readme_says_what_the_results_say() -> None:
    readme = (ROOT / "README.md").read_text()
    found = readme.partition(report.BEGIN)[2].partition(report.END)[0]
    assert found.strip() == report.made_from(report.RESULTS).strip(), "python -m bench.report writes it anew"


def test_the_section_has_the_table_and_what_falls_short() -> None:
    work = compared([0.5], [1.0], goal=Goal("cpu", "ratio to the best peer", 0.4))
    work.forwarders["peer-0"].refused.append("it lost one")
    text = report.section(results(work), None)
    assert "| A work | CPU-seconds per million messages | 0.50 | 1.00 | 0.50 | ≤ 0.4 × ✗ |" in text
    assert "* A work: CPU-seconds per million messages is to be ≤ 0.4 ×, and is 0.50 ×." in text
    assert "* Refused: A work: peer-0: it lost one." in text
    assert "2026-11-21" in text
    assert "a machine" in text
    assert "growth.svg" not in text
    assert "Nothing falls short" in report.section(results(compared([0.5], [1.0])), None)


def test_the_section_says_where_the_cost_grows_too_fast() -> None:
    steep = [Compared(f"{at}-bytes", "", [], {"syslogger": Runs([{"cpu": float(at * at)}])}) for at in (1, 10)]
    text = report.section(results(compared([1.0])), results(*steep))
    assert "syslogger's grows faster than the bytes from 1 to 10" in text
    assert "nowhere" in report.section(results(compared([1.0])), results(steep[0]))


def test_the_section_goes_between_its_marks_alone(tmp_path: Path) -> None:
    before = f"above\n{report.BEGIN}\nold\n{report.END}\nbelow\n"
    assert report.inserted(before, "new\n") == f"above\n{report.BEGIN}\n\nnew\n\n{report.END}\nbelow\n"
    with pytest.raises(ValueError, match="has no"):
        report.inserted("above\nbelow\n", "new\n")
    assert report.made_from(tmp_path) == report.section(None, None)
    results(compared([0.5], [1.0])).save(tmp_path / "compare.json")
    assert "| A work |" in report.made_from(tmp_path)
