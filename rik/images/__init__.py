"""Images: a reference becomes layers on disk.

Reading order: ``reference.py`` what the user wrote; ``manifest.py`` what an image consists of; ``source.py`` where
its parts come from (``files.py``, ``layout.py``, ``docker_archive.py``; ``opening.py`` chooses); ``store.py`` the
layers on disk; ``unpack.py`` how a layer gets there, by a confined child: ``confined.py`` starts it, ``untar/`` is what
it runs.

``untar/`` and this module import the standard library only: the child runs under ``python -I -S``.
"""
