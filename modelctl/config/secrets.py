"""Secrets that the configuration names and does not contain: in a variable, or in a file."""

from __future__ import annotations

import os
import re

from modelctl.errors import InvalidConfigError

_LONGEST = 65536


def read_secret(what: str, variable: str, file: str) -> str:
    """Return the secret in an environment variable, or the first line of a file; "" without both.

    *what*: the words for it. No message and no exception contains the secret.

    Raises:
        InvalidConfigError: it is missing, or cannot be read.
    """
    if variable:
        place, secret = f"environment variable {variable}", os.environ.get(variable, "")
    elif file:
        place = f"file {file}"
        try:
            with open(file, "rb") as stream:
                secret = stream.readline(_LONGEST).decode("latin-1").strip()
        except (OSError, ValueError) as exc:
            why = getattr(exc, "strerror", None) or "not a file name"
            raise InvalidConfigError(f"cannot read {what} from {place}: {why}") from None
    else:
        return ""
    if not secret:
        raise InvalidConfigError(f"{what} is missing: {place} is not set or empty")
    return secret


def read_key(what: str, variable: str, file: str) -> str:
    """Return what `read_secret` returns, if it can be sent as the key of an API.

    Raises:
        InvalidConfigError: it is missing, cannot be read, or is no key.
    """
    key = read_secret(what, variable, file)
    if not re.fullmatch("[!-~]*", key):
        place = file or f"environment variable {variable}"
        raise InvalidConfigError(f"{what}, in {place}, has characters that no key has")
    return key
