"""Images: a reference becomes layers on disk.

Reading order: ``reference.py`` what the user wrote; ``manifest.py`` what an image consists of; ``source.py`` where
its parts come from (``files.py``, ``layout.py``, ``docker_archive.py``, ``registry/``; ``opening.py`` chooses);
``store.py`` all that can be asked of a host's images. Below it: ``flights.py`` what many want is done once;
``pulling.py`` one pull, and ``tally.py`` how far it is; ``layers.py``, ``catalog.py`` and ``leases.py`` what lies on
the disk; ``housekeeping.py`` and ``pruning.py`` what of that goes. ``unpack.py`` is how a layer gets there, by a
confined child: ``confined.py`` starts it, ``untar/`` is what it runs.

``untar/`` and this module import the standard library only: the child runs under ``python -I -S``.
"""
