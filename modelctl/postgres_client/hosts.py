"""Connecting to the first of several hosts that accepts it, within the time that the call has left."""

from __future__ import annotations

import ctypes
import functools
import ipaddress
import os
import random
import socket
import sys
import threading
import time
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import psycopg
from psycopg import pq, waiting
from psycopg.conninfo import make_conninfo

from modelctl import deadline
from modelctl.postgres_client.errors import Answer, NoConnectionError, read_answer

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Mapping

    from psycopg.abc import PQGenConn
    from psycopg.pq.abc import PGconn

_Asked = TypeVar("_Asked")
_Ready = TypeVar("_Ready")
_Result = TypeVar("_Result")

CONNECT_SECONDS = 5.0  # for each address, unless the URL sets connect_timeout
INTERVAL = 0.1  # seconds between two checks for Ctrl-C


class WaitExpiredError(Exception):
    """The time of a wait is over."""


class _Host(NamedTuple):
    name: str
    address: str  # "" if it was not given
    port: str


def connect(given: Mapping[str, Any], budget: float) -> PGconn:
    """Try the addresses of all hosts in turn, each with its share of the time that is left.

    *given*: parameters of libpq; *budget*: seconds, outside of a call with a budget of its own.
    """
    defaults = {o.keyword.decode(): o.val.decode() for o in pq.Conninfo.get_defaults() if o.val}
    params = {name: str(value) for name, value in given.items()}
    longest = float(params.pop("connect_timeout", "") or defaults.get("connect_timeout") or 0)
    longest = longest if longest > 0 else CONNECT_SECONDS
    ends = time.monotonic() + deadline.left(budget)

    def share(others: int) -> float:
        return max(0.0, min(longest, (ends - time.monotonic()) / (1 + others)))

    answers: list[Answer] = []
    with deadline.spending():
        hosts = _take_hosts(params, defaults)
        if params.get("load_balance_hosts", defaults.get("load_balance_hosts")) == "random":
            random.shuffle(hosts)
        # All names at once: a name server that is slow for one host does not delay the others.
        lookups = [_addresses(host) for host in hosts]
        for number, (host, lookup) in enumerate(zip(hosts, lookups, strict=True)):
            others = len(hosts) - number - 1
            try:
                addresses = lookup.result(share(others))
            except TimeoutError:
                answers.append(
                    Answer("", f'no answer from the name server about host "{host.name}"')
                )
                continue
            except (OSError, UnicodeError) as exc:
                answers.append(Answer("", f'could not translate host name "{host.name}": {exc}'))
                continue
            for tried, address in enumerate(addresses):
                seconds = share(others + len(addresses) - tried - 1)
                where = {"host": host.name, "hostaddr": address, "port": host.port}
                where = {name: value for name, value in where.items() if value}
                found = _connect_to({**params, **where}, seconds)
                if not isinstance(found, Answer):
                    return found
                answers.append(found)
    raise NoConnectionError(answers)


def _take_hosts(params: dict[str, str], defaults: Mapping[str, str]) -> list[_Host]:
    """Remove the hosts from *params* and return them."""
    taken = {name: params.pop(name, "") for name in ("host", "hostaddr", "port")}
    if not taken["host"] and not taken["hostaddr"]:
        taken |= {name: defaults.get(name, "") for name in ("host", "hostaddr")}
    names, addresses = taken["host"].split(","), taken["hostaddr"].split(",")
    ports = (taken["port"] or defaults.get("port", "")).split(",")
    names += [""] * (len(addresses) - len(names))
    addresses += [""] * (len(names) - len(addresses))
    ports += ports[:1] * (len(names) - len(ports))
    return [_Host(*host) for host in zip(names, addresses, ports, strict=False)]


# ── Names ──

_lock = threading.Lock()
_lookups: dict[tuple[str, str], Future[list[str]]] = {}


def _forget_lookups() -> None:
    """Forget running lookups: the child of a fork does not have the threads that run them."""
    global _lock
    _lock = threading.Lock()
    _lookups.clear()


os.register_at_fork(after_in_child=_forget_lookups)


def _addresses(host: _Host) -> Future[list[str]]:
    """Return the address that is given, or look the name up in a thread: getaddrinfo has no timeout.

    Calls for the same name at the same time share one lookup.
    """
    if host.address or not _is_name(host.name):
        known: Future[list[str]] = Future()
        known.set_result([host.address])
        return known
    key = (host.name, host.port or "5432")
    with _lock:
        running = _lookups.get(key)
        if running is not None:
            return running
        running = _lookups[key] = Future()
    try:
        threading.Thread(target=_look_up, args=key, daemon=True).start()
    except RuntimeError:  # at the end of the interpreter no thread can start
        _look_up(*key)
    return running


def _is_name(host: str) -> bool:
    """Whether *host* needs a name server: it is no address and no socket in the file system."""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return bool(host) and host[0] not in "/@"
    return False


def _look_up(host: str, port: str) -> None:
    addresses: list[str] = []
    error: Exception | None = None
    try:
        infos = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, proto=socket.IPPROTO_TCP)
        addresses = list(dict.fromkeys(str(info[4][0]) for info in infos))
    except (OSError, UnicodeError) as exc:
        error = exc
    with _lock:
        future = _lookups.pop((host, port))
    if error:
        future.set_exception(error)
    else:
        future.set_result(addresses)


# ── A time limit for a wait ──


def limited(
    steps: Generator[_Asked, _Ready, _Result], seconds: float
) -> Generator[_Asked, _Ready, _Result]:
    """Pass on what psycopg waits for; after *seconds* raise `WaitExpiredError`.

    psycopg has a time limit of its own only since 3.3.6. It resumes the steps at each interval. What
    has arrived is read before the time is looked at.
    """
    ends = time.monotonic() + seconds
    try:
        asked = next(steps)
        while True:
            ready = yield asked
            asked = steps.send(ready)
            if time.monotonic() >= ends:
                raise WaitExpiredError
    except StopIteration as done:
        result: _Result = done.value
        return result


# ── One address ──


def _connect_to(params: Mapping[str, str], seconds: float) -> PGconn | Answer:
    """Connect to one address within *seconds*, or return what it answered."""
    try:
        starting = limited(_start(make_conninfo("", **params)), seconds)
        pgconn: PGconn = waiting.wait_conn(starting, min(INTERVAL, seconds))
    except WaitExpiredError:
        where = f'"{params.get("host", params.get("hostaddr", ""))}", port {params.get("port", "")}'
        return Answer("", f"connection to server at {where} failed: timeout expired")
    except psycopg.Error as exc:
        return read_answer(str(exc))
    return pgconn


def _start(conninfo: str) -> PQGenConn[Any]:
    """Connect as psycopg does, but let error messages contain their SQLSTATE."""
    pgconn: Any = pq.PGconn.connect_start(conninfo.encode())
    set_verbosity = _set_verbosity()
    if set_verbosity:
        set_verbosity(pgconn.pgconn_ptr, 2)
    while pgconn.status != pq.ConnStatus.BAD:
        status = pgconn.connect_poll()
        if status == pq.PollingStatus.OK:
            if set_verbosity:
                set_verbosity(pgconn.pgconn_ptr, 1)
            pgconn.nonblocking = 1
            return pgconn
        if status == pq.PollingStatus.FAILED:
            break
        ready = waiting.Wait.R if status == pq.PollingStatus.READING else waiting.Wait.W
        while not (yield pgconn.socket, ready):
            pass
    message = pgconn.get_error_message("utf-8")
    pgconn.finish()
    raise psycopg.OperationalError(message)


@functools.cache
def _set_verbosity() -> Callable[[int | None, int], int] | None:
    """Return PQsetErrorVerbosity of the libpq that psycopg is linked with; None if it is not found.

    psycopg does not offer it. Without it a refused connection is known by its message alone, which is
    in the server's language.
    """
    try:
        function = ctypes.PyDLL(sys.modules[pq.PGconn.__module__].__file__).PQsetErrorVerbosity
    except (OSError, AttributeError):
        return None
    function.argtypes, function.restype = (ctypes.c_void_p, ctypes.c_int), ctypes.c_int
    return function
