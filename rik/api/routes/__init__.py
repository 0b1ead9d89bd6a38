"""The calls, a module per group; each ends with its part of the table, `OPERATIONS`."""
