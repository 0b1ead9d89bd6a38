"""Images: a reference becomes layers on disk.

Reading order: ``reference.py`` what the user wrote; ``manifest.py`` what an image consists of; ``source.py`` where its parts come from
(``files.py``, ``layout.py``, ``docker_archive.py``); ``store.py`` the layers on disk; ``unpack.py`` how a layer gets there, by a confined child process:
``confined.py`` starts it, ``child.py`` is what it runs (with ``tarstream.py``, ``merged.py``, ``extract.py`` and ``discard.py``).

The child's modules and this one import the standard library only: the child runs under ``python -I -S``.
"""
