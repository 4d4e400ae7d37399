"""Requests in any minute, and wrong keys from one address."""

from __future__ import annotations

import pytest

from ray_jobs.serve.refusals import Refusal
from ray_jobs.serve.web.keys import LOCAL, Who
from ray_jobs.serve.web.rates import Failures, Rates, Window
from tests.support.clock import Clock

ANNA, BEN = Who("aaaaaaaa", "predict"), Who("bbbbbbbb", "admin")
UNKNOWN = Refusal("key_unknown", "this API key is not known")


def test_no_minute_has_more_requests_than_allowed_and_the_wait_that_is_named_is_enough() -> None:
    clock = Clock()
    rates = Rates(2, clock=clock)
    assert rates.refusal(ANNA) is None
    clock.now += 30.5
    assert rates.refusal(ANNA) is None
    for _ in range(3):  # what is refused is not counted
        assert rates.refusal(ANNA) == Refusal(
            "rate_limited", "this key may send 2 requests a minute; wait 30 s", retry_seconds=30
        )
    assert rates.refusal(BEN) is None
    clock.now += 30
    assert rates.refusal(ANNA) is None
    assert rates.refusal(ANNA) is not None
    clock.now += 29.999
    refusal = rates.refusal(ANNA)
    assert refusal is not None and refusal.retry_seconds == 1


def test_without_keys_nothing_is_refused() -> None:
    rates = Rates(1)
    assert all(rates.refusal(LOCAL) is None for _ in range(1000))


def test_memory_is_bounded_and_who_came_last_is_remembered() -> None:
    window = Window(1, max_names=3, clock=Clock())
    for number in range(1000):
        window.take(f"client {number}")
        window.take("steady")
    assert len(window) == 3
    assert window.take("steady") == 60


@pytest.mark.parametrize(
    ("first", "second", "together"),
    [
        ("203.0.113.7", "203.0.113.7", True),
        ("203.0.113.7", "203.0.113.8", False),
        ("203.0.113.7", "::ffff:203.0.113.7", True),
        ("2001:db8:0:1::1", "2001:db8:0:1:ffff::2", True),
        ("2001:db8:0:1::1", "2001:db8:0:2::1", False),
        ("fe80::1%eth0", "fe80::2%eth1", True),
        (None, "not an address", True),
    ],
)
def test_wrong_keys_are_counted_per_address_or_ipv6_network(
    first: str | None, second: str | None, together: bool
) -> None:
    failures = Failures(1, clock=Clock())
    assert failures.answer(UNKNOWN, first) is UNKNOWN
    limited = Refusal("rate_limited", "too many wrong API keys; wait 60 s", retry_seconds=60)
    assert failures.answer(UNKNOWN, second) == (limited if together else UNKNOWN)


def test_a_request_without_a_key_is_no_guess() -> None:
    failures = Failures(1, clock=Clock())
    missing = Refusal("key_missing", "this server needs an API key")
    assert [failures.answer(missing, "203.0.113.7") for _ in range(5)] == [missing] * 5
    assert failures.answer(UNKNOWN, "203.0.113.7") is UNKNOWN
