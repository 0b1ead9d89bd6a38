"""The commands: a thin HTTP client of the API, and `rik serve`.

`main.py` knows the name and one-line help of every command and imports the module behind it only when it is called, so
that `rik --help` answers at once. Plain calls go over `client.py` (the standard library's http.client); what follows
something live goes over `stream.py` (a websocket on Trio).
"""
