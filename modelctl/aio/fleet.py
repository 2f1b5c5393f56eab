"""AsyncFleet: the library for asyncio. Each method is that of `Fleet` with the same name."""

from __future__ import annotations

from modelctl.aio.calls import AsyncCalls, called, counted, followed, in_thread, iterated, unchanged
from modelctl.fleet.fleet import Fleet


class AsyncFleet(AsyncCalls):
    """`Fleet` for asyncio, for FastAPI, Starlette and Django: the same methods as coroutines.

    Open a fleet with `AsyncFleet.open`, once for the application; use it with ``async with``, or
    `aclose` it. A cached count is asked of Redis in the event loop. All other work is done in at most
    three threads, or in *pool_size* of them: ``AsyncFleet(Config.load(), pool_size=10)``. Several event loops may share a fleet, and a process may fork.

    If a coroutine is cancelled, its thread finishes the call and drops the result, so no connection
    is left in the middle of a transaction: a cancelled change may have been made. A call that no thread
    has begun is not made. A call waits at most ``database.timeout``, for a thread and the database
    together. Errors are those of `Fleet`. *progress* and `on_warning` are called in a thread.

    `call` and `recorder` are plain methods: ``async with fleet.call(id):``. The ``success`` and
    ``failure`` of a recorder wait for nothing, unless ``wait=True`` or ``when_full="block"`` is given;
    `aclose` writes what waits.
    """

    count = counted(Fleet.count)
    verify = in_thread(Fleet.verify)
    drain = in_thread(Fleet.drain)
    clear_cache = in_thread(Fleet.clear_cache)
    cache_report = in_thread(Fleet.cache_report)

    list_models = in_thread(Fleet.list_models)
    iter_models = iterated(Fleet.iter_models)
    show = in_thread(Fleet.show)
    stats = in_thread(Fleet.stats)
    holds = in_thread(Fleet.holds)
    complete = in_thread(Fleet.complete)
    tags = in_thread(Fleet.tags)
    look_alikes = in_thread(Fleet.look_alikes)
    snapshot = in_thread(Fleet.snapshot)
    leaderboard = in_thread(Fleet.leaderboard)
    availability = in_thread(Fleet.availability)

    events = in_thread(Fleet.events)
    iter_events = iterated(Fleet.iter_events)
    follow_events = followed(Fleet.follow_events)
    undo = in_thread(Fleet.undo)

    disable = in_thread(Fleet.disable)
    enable = in_thread(Fleet.enable)
    remove = in_thread(Fleet.remove)
    add = in_thread(Fleet.add)
    record_success = in_thread(Fleet.record_success)
    record_failure = in_thread(Fleet.record_failure)
    record_batch = in_thread(Fleet.record_batch)
    import_models = in_thread(Fleet.import_models)
    ignore = in_thread(Fleet.ignore)
    unignore = in_thread(Fleet.unignore)
    ignored = in_thread(Fleet.ignored)
    sync = in_thread(Fleet.sync)
    call = called(Fleet.call)
    recorder = unchanged(Fleet.recorder)

    edit = in_thread(Fleet.edit)
    rename = in_thread(Fleet.rename)

    recover = in_thread(Fleet.recover)
    probe = in_thread(Fleet.probe)
    last_recover = in_thread(Fleet.last_recover)
    pause = in_thread(Fleet.pause)
    resume = in_thread(Fleet.resume)

    notify = in_thread(Fleet.notify)

    upgrade = in_thread(Fleet.upgrade)
    schema_status = in_thread(Fleet.schema_status)
    declarations = in_thread(Fleet.declarations)
    detach = in_thread(Fleet.detach)
    uninstall = in_thread(Fleet.uninstall)
    doctor = in_thread(Fleet.doctor)
    metrics = in_thread(Fleet.metrics)
    prune = in_thread(Fleet.prune)

    export = iterated(Fleet.export)
    restore = in_thread(Fleet.restore)
