"""Runtimes: each knows one kind of execution and nothing of RIK's state."""
