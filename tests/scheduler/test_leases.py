"""How long a silent node is believed."""

from __future__ import annotations

from rik.scheduler.leases import Leases


def test_a_lease_runs_out_and_a_node_is_lost() -> None:
    """Valid for the lease from the last word, run out from then on, and lost so much later."""
    leases = Leases(10, 60)
    leases.hear("a", 100)
    assert leases.valid("a", 109.9) and not leases.valid("a", 110)
    assert (leases.run_out(109.9), leases.run_out(110)) == ([], ["a"])
    assert (leases.lost(169.9), leases.lost(170)) == ([], ["a"])
    leases.hear("a", 171)
    assert leases.valid("a", 172) and not leases.run_out(172)


def test_time_in_which_nobody_could_be_heard_is_forgiven() -> None:
    """When the scheduler itself stood still, every lease moves on by that time."""
    leases = Leases(10, 60)
    leases.hear("a", 0)
    leases.forgive(1000)
    assert leases.valid("a", 1009) and leases.run_out(1010) == ["a"]


def test_nobody_and_the_forgotten_have_no_lease() -> None:
    """An unknown or forgotten node has none, and is never reported."""
    leases = Leases(10, 60)
    leases.hear("a", 0)
    leases.forget("a")
    leases.forget("b")
    assert not leases.valid("a", 1) and leases.run_out(1000) == [] and leases.lost(1000) == []
