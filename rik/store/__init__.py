"""Where cluster state is durable. The scheduler is the only writer; the api reads history and post-mortems.

Reading order: `base` (the contract), `memory` (the simplest store), `sqlite` (the one on disk: `schema`, `records`,
`writer`, and `opening`, what of a file is trusted). `sqlitefile`, `wal` and `groupcommit` serve every SQLite file of
RIK's, the workers' journals too: opening it, and writing all that waits with one fsync.
"""
