"""Passwords in URLs: found, and replaced before a URL is shown or stored.

In: text that may be or contain a URL. Out: whether it holds a secret, and the same text with `***` in its place.
"""

from __future__ import annotations

import re

HIDDEN = "***"
"""What stands in place of a secret."""
_USER = re.compile(r"(://[^:@/?#\s]*:)(\S+)(@)")
"""`://user:password@`; greedy up to the last `@`, as passwords are often pasted with an `@` of their own."""
_QUERY = re.compile(r"([?&;][^=&;?\s]*(?:password|passwd|pwd|secret|token)[^=&;\s]*=)([^&;\s]+)", re.I)


def redacted(text: str) -> str:
    """The text with every password of a URL replaced, also those in its query, as in `?sslpassword=…`."""
    return _QUERY.sub(rf"\g<1>{HIDDEN}", _USER.sub(rf"\g<1>{HIDDEN}\g<3>", text))


def holds_secret(text: str) -> bool:
    """Whether the text has a URL with a password; a reference such as `${oc.env:PASSWORD}` in its place is none."""
    secrets = [match[2] for pattern in (_USER, _QUERY) for match in pattern.finditer(text)]
    return any(not re.fullmatch(rf"\$\{{[^}}]*\}}|{re.escape(HIDDEN)}", secret) for secret in secrets)
