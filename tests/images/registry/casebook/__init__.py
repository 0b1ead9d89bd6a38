"""What registries do to their clients: each case with the reason it must end in, the words that say why, and its time.

A case sets a scene; what it returns is pulled (by default the scene's image). `settings` are of ImageSettings.
"""

from __future__ import annotations

from tests.images.registry.casebook import absence, authorization, documents, elsewhere, wire
from tests.images.registry.casebook.case import CASES, QUICK_S, Case

__all__ = ["CASES", "QUICK_S", "Case", "absence", "authorization", "documents", "elsewhere", "wire"]
