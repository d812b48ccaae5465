"""What weights cost at least: one copy of their bytes in memory, a unit of work.

Asked: bytes.
"""

from __future__ import annotations

import numpy as np
from serve import arguments, serve

if __name__ == "__main__":
    source = np.ones(arguments()["bytes"], np.uint8)
    target = np.zeros_like(source)

    def copy() -> float:
        """Copy once."""
        np.copyto(target, source)
        return 1.0

    serve(copy, ("numpy",))
