"""Layers that low bits hurt most, kept in their precision by formats of fewer than eight bits unless a recipe says so.

Published sensitivities (MixDQ, arXiv:2405.17873; Q-Diffusion, arXiv:2302.04304; Apple's mixed-bit palettization)
agree on the time embedding and its projections, the first and last layers, the shortcut convolutions and the
projections around attention. On SD 1.5's UNet they hold 8.8 % of the weights.
"""

from __future__ import annotations

from sdcompress.families.registry import known_architectures


def sensitive_patterns(class_name: str) -> tuple[str, ...]:
    """The patterns of the sensitive layers of a component's class; none for classes nothing is known about."""
    known = known_architectures().get(class_name)
    return known.sensitive if known else ()
