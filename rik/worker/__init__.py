"""The worker owns the instances on its host: one supervising task each, from order to final report.

Reading order: `journal` (what is durable), `supervisor` (the life of one instance), `adopt` (what a restart makes of
the journal), `reporter` (what the scheduler is told), `worker` (the actor), `streams`, `audit` and `doctor`."""
