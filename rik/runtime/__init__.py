"""Runtimes: each knows one kind of execution and nothing of RIK's state.

`base` is the contract; `fake` (with `fakemachine` and `fakeshell`) pretends; `process/` runs pods with nothing but
Linux and Python. For all of them: `exits`, how the end of a container is said, and `logfiles`, how logs are read.
"""
