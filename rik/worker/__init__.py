"""The worker owns the instances on its host: one supervising task each, from order to final report.

Reading order: `journal` (what is durable), `plan` and `supervisor` (the life of one instance), `turn` (when it may be
created), `account` (what is said and written of it), `adopt` (what a restart makes of the journal), `reporter` and
`session` (what the scheduler is told, and how), `worker` (the actor that holds them all); then `streams`, `images`,
`pruning`, `audit`, `doctor`, `logkeeping`.
"""
