"""The only writer of cluster state: validates, decides purely, makes it durable, and only then answers and orders.

Reading order: `state` (what there is), `lifecycle` and `placement` (pure decisions), `ledger` (what is decided and not
durable yet), `commands`, `pending`, `nodes`, `leases` (what makes it decide), `sessions` and `reception` (who is
connected), `scheduler` (the loop over them all).
"""
