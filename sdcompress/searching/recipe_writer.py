"""A recipe that a person can read, from the chosen format of every layer."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from sdcompress.quant.registry import from_label, known_roundings
from sdcompress.searching.space import KEPT, Choices
from sdcompress.sources.layer_patterns import matches

_WIDTH = 116


@dataclass(frozen=True)
class LayerChoice:
    """What a layer gets.

    Args:
        choices: its candidates.
        place: of the chosen one.
        damage: of the chosen one; None where no picture depends on the layer.
    """

    choices: Choices
    place: int
    damage: float | None

    @property
    def label(self) -> str:
        """Label of the format, or KEPT."""
        return self.choices.labels[self.place]

    @property
    def size_bytes(self) -> int:
        """Bytes of the weight."""
        return self.choices.weight_bytes[self.place]


def write_recipe(
    chosen: Sequence[LayerChoice],
    description: str,
    rounding: str,
    calibration: Mapping[str, object],
    notes: Iterable[str],
) -> str:
    """Return the YAML text of the recipe.

    Args:
        chosen: what every layer gets, in the pipeline's order.
        description: one line on what the recipe is for.
        rounding: how codes are chosen where layers can be calibrated.
        calibration: the recipe's calibration settings, without defaults.
        notes: comments at the top.
    """
    lines = [f"# {note}" for note in notes]
    lines += ["schema_version: 1", f"description: {_quoted(description)}", "components:"]
    total = sum(each.damage or 0.0 for each in chosen)
    for component in dict.fromkeys(each.choices.component for each in chosen):
        of_it = [each for each in chosen if each.choices.component == component]
        lines += [f"  {component}:", "    - cast: {dtype: float16}", *_quantize(of_it, rounding, total)]
    settings = ", ".join(f"{name}: {_flow(value)}" for name, value in calibration.items() if value is not None)
    return "\n".join([*lines, f"calibration: {{{settings}}}"]) + "\n"


def _quantize(layers: Sequence[LayerChoice], rounding: str, total: float) -> list[str]:
    """Return the lines of a component's `quantize` step; none where all its layers are kept."""
    groups: dict[str, list[LayerChoice]] = {}
    for each in layers:
        groups.setdefault(each.label, []).append(each)
    if set(groups) == {KEPT}:
        return []
    counts = Counter({label: len(group) for label, group in groups.items() if label != KEPT})
    default = max(counts, key=lambda label: (counts[label], label))
    calibrated = any(each.choices.measured for each in layers)
    lines = ["    - quantize:", f"        # {_summary(groups[default], total)}"]
    lines += [f"        {name}: {value}" for name, value in _options(default).items()]
    if calibrated:
        lines.append(f"        rounding: {rounding}")
        if known_roundings()[rounding].calibrated:
            lines.append("        bias_correction: true")
    lines.append("        keep_sensitive: false")
    others = sorted((label for label in groups if label != default), key=_bits, reverse=True)
    if others:
        lines.append("        overrides:")
    assigned: set[str] = set()
    names = {each.choices.layer.name for each in layers}
    for label in others:
        wanted = {each.choices.layer.name for each in groups[label]}
        patterns = short_patterns(sorted(wanted), names - wanted - assigned)
        assigned |= wanted
        lines.append(f"          # {_summary(groups[label], total)}")
        lines += _override(patterns, label)
    return lines


def short_patterns(wanted: Sequence[str], others: Iterable[str]) -> list[str]:
    """Return few patterns that match all of the wanted layers and none of the others.

    Greedy: the pattern that matches most of what is left comes next.

    Examples:
        >>> short_patterns(["a.0.to_q", "a.1.to_q"], ["a.0.to_k"])
        ['*.to_q']
    """
    others = tuple(others)
    fitting: dict[str, frozenset[str]] = {}
    for name in wanted:
        for pattern in _patterns(name):
            if pattern not in fitting and not any(matches(pattern, other) for other in others):
                fitting[pattern] = frozenset(each for each in wanted if matches(pattern, each))
    left, chosen = set(wanted), []
    while left:
        best = max(fitting, key=lambda pattern: (len(fitting[pattern] & left), -len(pattern), pattern))
        chosen.append(best)
        left -= fitting[best]
    return chosen


def _patterns(name: str) -> Iterable[str]:
    """Yield the name, the modules around it, its endings, and all of these without the numbers of blocks."""
    parts = name.split(".")
    for count in range(1, len(parts) + 1):
        yield ".".join(parts[:count])
        if count < len(parts):
            yield "*." + ".".join(parts[-count:])
    for place, part in enumerate(parts):
        if part.isdigit():
            yield ".".join([*parts[:place], "*", *parts[place + 1 :]])
    for count in range(1, len(parts)):
        start, end = ".".join(parts[:count]), ".".join(parts[count + 1 :])
        if end:
            yield f"{start}.*.{end}"


def _summary(group: Sequence[LayerChoice], total: float) -> str:
    size = sum(each.size_bytes for each in group) / 1e6
    halved = sum(2 * each.choices.layer.parameters for each in group) / 1e6
    share = sum(each.damage or 0.0 for each in group) / total if total else 0.0
    what = "layer" if len(group) == 1 else "layers"
    saved = f"{size:.2f} MB instead of {halved:.2f}" if group[0].label != KEPT else f"{size:.2f} MB, kept"
    judged = f"{share:.1%} of the predicted error" if group[0].damage is not None else "no picture depends on them"
    return f"{len(group)} {what}: {saved}; {judged}"


def _options(label: str) -> dict[str, object]:
    fmt = from_label(label)
    options: dict[str, object] = {"format": fmt.name, "group_size": fmt.group_size}
    options |= {"scale_bits": None if fmt.scale_bits == 16 else fmt.scale_bits, "rank": fmt.rank or None}
    options["hadamard"] = "true" if fmt.hadamard else None
    return {name: value for name, value in options.items() if value is not None}


def _override(patterns: Sequence[str], label: str) -> list[str]:
    options = {"format": "null"} if label == KEPT else _options(label)
    said = ", ".join(f"{name}: {value}" for name, value in options.items())
    listed = ", ".join(_flow(pattern) for pattern in patterns)
    line = f"          - {{layers: [{listed}], {said}}}"
    if len(line) <= _WIDTH:
        return [line]
    lines = ["          - layers:", *(f"              - {_flow(pattern)}" for pattern in patterns)]
    return [*lines, *(f"            {name}: {value}" for name, value in options.items())]


def _bits(label: str) -> tuple[int, str]:
    return (16 if label == KEPT else from_label(label).bits, label)


def _flow(value: object) -> str:
    if isinstance(value, tuple | list):
        return f"[{', '.join(_flow(each) for each in value)}]"
    if isinstance(value, str):
        return _quoted(value)
    return str(value).lower() if isinstance(value, bool) else str(value)


def _quoted(text: str) -> str:
    plain = text.replace(".", "").replace("_", "").replace("-", "").isalnum()
    return text if plain and not text[0].isdigit() else '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'
