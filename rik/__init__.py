"""RIK schedules two kinds of work side by side under one API: Pods (containers) and Functions (microVMs).

One Python process per host, on Trio, with nothing else to install for a first look. A *workload* is a definition; an
*instance* is one deployment of it. RIK never repairs a failed instance: it says what failed, where and why, and keeps
that record.

Reading order, for somebody who is new here:

1. ``rik/model/``        the words: workload, instance, node, resources, and which status may follow which.
2. ``rik/messages.py``   everything the roles say to each other, one union of messages per receiver.
3. ``rik/scheduler/``    the only writer of cluster state; its decisions are pure functions.
4. ``rik/worker/``       one supervising task per instance, with a journal of its own.
5. ``rik/runtime/``      what runs an instance; ``base.py`` is the contract, ``fake.py`` the simplest answer to it.
6. ``rik/api/``          HTTP and websockets over a read model of what was committed.
7. ``rik/store/``        where the state is durable; ``rik/link/`` what carries the messages.
8. ``rik/images/``       from a reference to layers on disk; ``rik/network/`` published ports; ``rik/linux/`` Linux.
9. ``rik/host.py``       the one place that knows everybody and wires the roles together (``runtimes.py`` makes the
   runtimes, ``inspection.py`` looks at a host without a server).
10. ``rik/cli/``          the commands; plain HTTP clients, but for ``serve``.

Imports go one way only (``tests/test_layering.py`` enforces it): ``linux, model, errors, settings`` <- ``messages,
environment`` <- ``link, store, images, network`` <- ``runtime`` <- ``api | scheduler | worker`` <- ``runtimes`` <-
``inspection`` <- ``host`` <- ``cli``.

This module imports nothing: pod supervisors start from it and must stay small.
"""

__version__ = "0.1.0"
