"""The supervisor of one pod: a process of its own, written with the standard library alone, that outlives RIK.

It holds what the containers of a pod share (user, network, ipc and uts namespaces), starts each container in mount and
pid namespaces of its own, keeps their output and their exit codes on disk, and answers on a control socket.

    RIK ── control socket ──▶ pod init ──┬── PID 1 of container a ── its command
        (may come and go)                └── PID 1 of container b ── its command

Reading order: `main` (the pod's life), `loop` (what it waits for), `namespaces` (how it becomes unprivileged),
`container` (one container, seen from outside), `minit` (its PID 1), `rootfs` (its file system), `command` (executing),
`logs`, `records` (what stays on disk), `control` (the socket), `execution` (exec); `zygote` is where they come from.

Rules: every fork closes what is not its own (`close_all_but`), because the descriptors a process holds are how others
learn of its death; nothing is imported late, because after the change of user the modules may no longer be readable.
"""
