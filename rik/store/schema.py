"""The tables, and how a file of an older version becomes one of this version.

`PRAGMA user_version` counts the migrations that a file has had. A migration that was ever released is never edited:
what changes is appended.

    meta         cluster_id, and the last revision
    objects      the present record of every object
    journal      the last changes, one row a revision; `value` is the record after (of a delete, the last one)
    events       what was told along with a change, kept as long as the journal
    postmortems  the records of instances that ended
"""

from __future__ import annotations

import sqlite3

from rik.store.sqlitefile import format_version

# "RIK1": tells a store from any other SQLite database.
APPLICATION_ID = 0x52494B31

MIGRATIONS: tuple[tuple[str, ...], ...] = (
    (
        "CREATE TABLE meta (key TEXT PRIMARY KEY, value) WITHOUT ROWID",
        "CREATE TABLE objects (kind TEXT, key TEXT, revision INTEGER, record BLOB, PRIMARY KEY (kind, key))"
        " WITHOUT ROWID",
        "CREATE TABLE journal (revision INTEGER PRIMARY KEY, kind TEXT, op TEXT, key TEXT, at INTEGER,"
        " value BLOB, before BLOB)",
        "CREATE TABLE events (revision INTEGER PRIMARY KEY, at INTEGER, uid TEXT, namespace TEXT, event BLOB)",
        "CREATE TABLE postmortems (uid TEXT PRIMARY KEY, revision INTEGER, ended_at INTEGER, namespace TEXT, name TEXT,"
        " record BLOB) WITHOUT ROWID",
    ),
    (
        "CREATE INDEX events_of_instance ON events (uid, revision) WHERE uid <> ''",
        "CREATE INDEX postmortems_by_name ON postmortems (name, revision)",
        "CREATE INDEX postmortems_by_end ON postmortems (ended_at)",
    ),
)
VERSION = len(MIGRATIONS)


def create(connection: sqlite3.Connection, cluster_id: str) -> None:
    """Makes an empty database a store of this version, within a transaction of the caller's."""
    _apply(connection, 0)
    connection.executemany("INSERT INTO meta VALUES (?, ?)", [("cluster_id", cluster_id), ("revision", 0)])


def migrate(connection: sqlite3.Connection) -> None:
    """Brings a store of an older version to this one in a single transaction; one of this version is left alone."""
    found = format_version(connection)
    if found == VERSION:
        return
    connection.execute("BEGIN IMMEDIATE")
    try:
        _apply(connection, found)
        connection.execute("COMMIT")
    except sqlite3.Error:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise


def _apply(connection: sqlite3.Connection, found: int) -> None:
    for migration in MIGRATIONS[found:]:
        for statement in migration:
            connection.execute(statement)
    connection.execute(f"PRAGMA user_version = {VERSION}")
