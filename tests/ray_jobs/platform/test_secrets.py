"""Passwords in URLs: found and hidden, however they are written."""

from __future__ import annotations

import pytest

from ray_jobs.platform.secrets import holds_secret, redacted


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("postgresql://u:pw@h/db", "postgresql://u:***@h/db"),
        ("postgresql://u:p@ss/w?rd#@h:5432/db", "postgresql://u:***@h:5432/db"),
        ("postgresql://:pw@h/db", "postgresql://:***@h/db"),
        ("mysql+x://u:ä%20:b@h", "mysql+x://u:***@h"),
        ("postgresql://u@h/db?sslmode=require&password=pw", "postgresql://u@h/db?sslmode=require&password=***"),
        ("postgresql://h/db?sslpassword=a&user=u&PASSWORD=b", "postgresql://h/db?sslpassword=***&user=u&PASSWORD=***"),
        ("storage=postgresql://u:pw@h/db trials=3", "storage=postgresql://u:***@h/db trials=3"),
    ],
)
def test_a_password_is_found_and_replaced(text: str, expected: str) -> None:
    assert holds_secret(text)
    assert redacted(text) == expected
    assert not holds_secret(expected)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "/shared/s.log",
        "journal:/shared/a@b.log",
        "postgresql://u@h:5432/db?sslmode=require&passfile=/home/u/.pgpass",
        "sqlite:////shared/study.db",
        "${oc.env:SWEEP_STORAGE}",
        "http://head:8265",
    ],
)
def test_text_without_a_password_stays(text: str) -> None:
    assert not holds_secret(text)
    assert redacted(text) == text


def test_a_password_by_reference_is_no_secret_yet() -> None:
    assert not holds_secret("postgresql://u:${oc.env:PGPASS}@h/db")
