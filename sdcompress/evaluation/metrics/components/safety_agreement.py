"""Agreement of two safety checkers on the same pictures."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np


def safety_agreement(outputs: Sequence[tuple[np.ndarray, np.ndarray]]) -> dict[str, Any]:
    """Return the share of pictures on which both checkers say the same, and how many each flags.

    Where neither flags anything, full agreement says little: the counts are beside it for that reason.

    Args:
        outputs: (original, compressed) flags, [pictures] each.

    Returns:
        `agreement` from 0 to 1, `pictures`, `flagged_original` and `flagged_compressed`.

    Examples:
        >>> safety_agreement([(np.array([True, False]), np.array([False, False]))])["agreement"]
        0.5
    """
    original, compressed = (
        np.concatenate([pair[side].astype(bool).reshape(-1) for pair in outputs]) for side in (0, 1)
    )
    return {
        "agreement": float((original == compressed).mean()),
        "pictures": len(original),
        "flagged_original": int(original.sum()),
        "flagged_compressed": int(compressed.sum()),
    }
