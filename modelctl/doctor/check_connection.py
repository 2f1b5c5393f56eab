"""The configuration, the connection to the database, and modelctl's schema in it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from modelctl.doctor.facts import Finding, warning, well, wrong
from modelctl.urls.url import mask_url

if TYPE_CHECKING:
    from modelctl.doctor.facts import Facts


def configuration(facts: Facts) -> Finding:
    """Name the file in use."""
    return well(str(facts.config.file or "no file"))


def database(facts: Facts) -> Finding:
    """Connect, and name the database and its version."""
    path = facts.config.sqlite_path
    if facts.database_is_new:
        return warning(
            f"no database is configured, and {path} does not exist yet: the first command that needs"
            " it creates it, without models. For another database set database.url"
            " (MODELCTL_DATABASE_URL)"
        )
    version = facts.storage.version()
    facts.connected = True
    return well(f"{version}, {mask_url(facts.config.database.url) or path}")


def schema(facts: Facts) -> Finding:
    """Compare the schema with what this release needs."""
    from modelctl.migrations import migrate
    from modelctl.migrations.plan import NOTHING_INSTALLED

    status = facts.storage.inspect(migrate.status)
    # The triggers have a check of their own.
    differences = [found for found in status.findings if not found.startswith("the trigger")]
    problems = [*status.obstacles, *differences]
    if not problems:
        return well(f"{status.current}, as this release needs it")
    if NOTHING_INSTALLED in differences:
        facts.schema_missing = True
        problems = ["missing: the database lacks modelctl's schema", *status.obstacles]
    return wrong(f"{'; '.join(problems)}; run: modelctl db upgrade")
