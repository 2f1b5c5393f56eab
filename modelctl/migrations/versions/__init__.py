"""One module per revision: ``upgrade(connection)`` brings the tables from the one before to it.

Revisions make tables; the triggers follow, see :mod:`modelctl.migrations.triggers`.
"""
