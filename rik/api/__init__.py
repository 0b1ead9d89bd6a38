"""The api role: HTTP and websockets over a read model of what was committed.

Reading order: `view.py` (the read model), `session.py` (the link that feeds it and answers requests), `service.py`
(what each call means, without HTTP), `advice.py` (its warnings) and `images.py` (the same, of images), `watch.py`,
`logs.py` and `terminals.py` (the long-lived ones, the last two by way of `streams.py`), `operations.py` and `routes/`
(one table of calls), `app.py` (the table made into an application), `openapi.py` and `schemas.py` (the same table as a
document), `gate.py` and `connections.py` (who may ask, and how long), `server.py` (`Api`, the role).
"""
