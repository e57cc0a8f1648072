"""Whose turn it is when a slot becomes free."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from edgepd_daemon.engine.types import Request, Version
from edgepd_daemon.engine.waiting import WaitingQueue

VERSION = Version(1, Path("model.gguf"))


def request(client: str) -> Request:
    return Request([1], VERSION, 1, lambda _event: None, client=client)


def filled(*clients: str) -> tuple[WaitingQueue, list[Request]]:
    queue, requests = WaitingQueue(), [request(c) for c in clients]
    for number, waiting in enumerate(requests):
        queue.push(waiting, float(number))
    return queue, requests


def order(queue: WaitingQueue, running: Counter[str]) -> list[str]:
    """The clients in the order in which they are served when one answer ends as another begins."""
    served = []
    while (chosen := queue.pop(lambda _request: True, running)) is not None:
        served.append(chosen.request.client)
    return served


def test_one_client_is_served_in_the_order_of_arrival() -> None:
    queue, requests = filled("a", "a", "a")
    assert [queue.pop(lambda _r: True, Counter()).request for _ in requests] == requests  # type: ignore[union-attr]


def test_a_client_with_many_requests_does_not_delay_another() -> None:
    queue, _ = filled("many", "many", "many", "many", "one")
    assert order(queue, Counter()) == ["many", "one", "many", "many", "many"]


def test_who_has_fewer_answers_running_comes_first() -> None:
    queue, _ = filled("a", "b")
    assert order(queue, Counter(a=2, b=1)) == ["b", "a"]


def test_who_was_served_longest_ago_comes_first() -> None:
    queue, _ = filled("a", "b", "c", "a", "b", "c")
    assert order(queue, Counter()) == ["a", "b", "c", "a", "b", "c"]


def test_what_cannot_be_admitted_is_passed_over_and_stays() -> None:
    queue, (first, second) = filled("a", "b")
    chosen = queue.pop(lambda r: r is second, Counter())
    assert chosen is not None and chosen.request is second
    assert [w.request for w in queue] == [first]
    assert queue.pop(lambda _r: False, Counter()) is None


def test_a_request_can_be_taken_out_once() -> None:
    queue, (first, second) = filled("a", "a")
    removed = queue.remove(first)
    assert removed is not None and removed.submitted == 0.0
    assert queue.remove(first) is None
    assert len(queue) == 1


@given(st.lists(st.sampled_from("abc"), max_size=30))
def test_everyone_is_served_once_and_nobody_twice_before_another_who_waits(clients: list[str]) -> None:
    queue, _ = filled(*clients)
    served = order(queue, Counter())
    assert Counter(served) == Counter(clients)
    for turn, client in enumerate(served):
        still = served[turn:]
        before = Counter(served[:turn])
        # Everyone who still waits has had as many turns as this client, or more.
        assert all(before[other] >= before[client] for other in still)
