"""What may be asked for, wherever it is checked. The command line loads it: it imports next to nothing."""

from __future__ import annotations

import re

# Instances that one request may create, and that a workload may want.
MAX_REPLICAS = 10_000
# Of workloads and instances: as host names are, so that they can become some.
NAME = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?", re.ASCII)
