"""Images from registries.

Reading order: `registries.py` (the way in), `source.py` (one image, from whichever server delivers), `endpoints.py`
(which servers those are), `client.py` (the distribution API at one of them), `downloads.py` and `spool.py` (each blob
once, read while it grows), `attempts.py` and `patience.py` (when to try again, and when to give up); below them
`authorization.py`, `challenges.py`, `credentials.py` and `credential_helpers.py` (who asks), `transport.py`, `tls.py`
and `proxies.py` (how), `failures.py` (what went wrong, in words).
"""
