"""Linux itself: system calls, identity maps, cgroups, processes; nothing of RIK's own vocabulary.

Everything here may be imported by programs under ``python -I -S`` (the pod init, the unpacking child): only the
standard library, and at import time not the slow parts of it (``dataclasses``, ``typing``, ``subprocess``).
"""
