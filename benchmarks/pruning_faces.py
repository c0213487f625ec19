"""A result of benchmarks/pruning.py as a table, as lines, and as pictures before and after."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

METHODS = {"auto": "whole parts, by importance", "bk-sdm": "BK-SDM's patterns", "width": "heads, widths and channels"}
COLOURS = {"auto": "#c0392b", "bk-sdm": "#2a6f97", "width": "#7a8b3c"}
STYLES = {0.0: (":", "o", "none"), 2.0: ("--", "s", None), 10.0: ("-", "D", None)}
SHOWN = 8  # pictures of each row
SIDE = 96  # pixels


def pruning_table(result: Mapping[str, Any]) -> str:
    """Markdown: a row for each contender, with what it is before and after each recovery."""
    entries = result["entries"]
    minutes = sorted({entry["minutes"] for entry in entries.values()})
    heads = ["before recovery" if not each else f"after {each:g} min" for each in minutes]
    columns = [column for head in heads for column in (f"CLIP score {head}", f"PSNR {head}")]
    lines = [f"| pruned | UNet removed | UNet's time | {' | '.join(columns)} |", "|---|" + "---:|" * (2 + len(columns))]
    names = dict.fromkeys(entry["contender"] for entry in entries.values())
    for name in names:
        mine = {entry["minutes"]: entry for entry in entries.values() if entry["contender"] == name}
        first = next(iter(mine.values()))
        cells = [cell for each in minutes for cell in _quality(mine.get(each))]
        time = min(mine.values(), key=lambda entry: entry["minutes"])["latency_ratio"]
        lines.append(f"| `{name}` | {100 * first['removed']:.0f} % | {time:.2f}x | {' | '.join(cells)} |")
    original = next(iter(entries.values()))["original_clip_score"]
    report = next(iter(result["reports"].values()))
    environment = report["environment"]
    count = environment["threads"]["original"]
    threads = f"{count} thread{'s' * (count != 1)} of {environment['cpu']}"
    lines += [
        "",
        f"Original: CLIP score {original:.1f}; {report['settings']['prompt_count']} prompts, "
        f"{report['settings']['num_inference_steps']} steps; {threads}.",
    ]
    return "\n".join(lines)


def regained(result: Mapping[str, Any], name: str, minutes: float) -> float | None:
    """The share of the CLIP score lost by pruning that so many minutes of recovery regained; None if not measured."""
    found = {entry["minutes"]: entry for entry in result["entries"].values() if entry["contender"] == name}
    if 0.0 not in found or minutes not in found:
        return None
    lost = -found[0.0]["clip_drift"]
    return (lost + found[minutes]["clip_drift"]) / lost if lost > 0 else None


def draw_lines(result: Mapping[str, Any], to: Path) -> Path:
    """CLIP score over the share removed, a line for each method and time of recovery, as a PNG file."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(1, 2, figsize=(12, 4.6))
    groups: dict[tuple[str, float], list[Mapping[str, Any]]] = {}
    for entry in result["entries"].values():
        method = next(method for method in METHODS if entry["contender"].startswith(method))
        groups.setdefault((method, entry["minutes"]), []).append(entry)
    for (method, minutes), members in sorted(groups.items()):
        style, marker, fill = STYLES.get(minutes, ("-", "^", None))
        members = sorted(members, key=lambda entry: entry["removed"])
        label = METHODS[method] + (f", {minutes:g} min of recovery" if minutes else "")
        for axes, figure_of in zip(panels, ("clip_score", "latency_ratio"), strict=True):
            if figure_of == "latency_ratio" and minutes:
                continue
            axes.plot(
                [100 * entry["removed"] for entry in members], [entry[figure_of] for entry in members],
                style, marker=marker, markerfacecolor=fill, color=COLOURS[method], label=label,
            )  # fmt: skip
    original = next(iter(result["entries"].values()))["original_clip_score"]
    panels[0].axhline(original, color="#888888", linewidth=1)
    panels[0].annotate("original", (1, original), xytext=(0, -12), textcoords="offset points", color="#666666")
    panels[0].set_ylabel("CLIP score")
    panels[1].axhline(1, color="#888888", linewidth=1)
    panels[1].set_ylabel("UNet's time per picture, of the original's")
    for axes in panels:
        axes.set_xlabel("parameters of the UNet removed, %")
        axes.grid(alpha=0.3)
    figure.suptitle("tiny-sd, UNet pruned", x=0.01, ha="left", fontsize=11)
    figure.legend(*panels[0].get_legend_handles_labels(), loc="lower center", ncols=3, frameon=False, fontsize=8)
    figure.tight_layout(rect=(0, 0.14, 1, 1))
    to.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(to, dpi=110)
    pyplot.close(figure)
    return to


def draw_pictures(result: Mapping[str, Any], work: Path, to: Path, rows: Sequence[str] | None = None) -> Path:
    """The first pictures of the original and of each contender that was recovered, before and after, as a PNG file."""
    from PIL import Image, ImageDraw, ImageFont

    chosen = rows or _rows(result)
    count = next(iter(result["reports"].values()))["settings"]["prompt_count"]
    folders = {key: work / key.replace("@", "-recovered-") / f"report-{count}" / "images" for key in chosen}
    lines = [("original", next(iter(folders.values())) / "original")]
    lines += [(key.replace("@", ", ") + (" min" if "@" in key else ""), folders[key] / "compressed") for key in chosen]
    label = 190
    sheet = Image.new("RGB", (label + SHOWN * (SIDE + 4), len(lines) * (SIDE + 4)), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(15)
    for row, (text, folder) in enumerate(lines):
        top = row * (SIDE + 4)
        draw.text((6, top + SIDE // 2 - 8), text, fill="black", font=font)
        for column, file in enumerate(sorted(folder.glob("*.png"))[:SHOWN]):
            with Image.open(file) as picture:
                sheet.paste(picture.convert("RGB").resize((SIDE, SIDE)), (label + column * (SIDE + 4), top))
    to.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(to)
    return to


def _rows(result: Mapping[str, Any]) -> list[str]:
    """What was recovered, each before and after."""
    recovered = dict.fromkeys(entry["contender"] for entry in result["entries"].values() if entry["minutes"])
    return [key for name in recovered for key in result["entries"] if key.partition("@")[0] == name]


def _quality(entry: Mapping[str, Any] | None) -> tuple[str, str]:
    if entry is None:
        return "", ""
    low, high = entry["clip_drift_interval_95"]
    psnr = "identical" if entry["psnr_db"] is None else f"{entry['psnr_db']:.1f} dB"
    return f"{entry['clip_score']:.1f} [{low:+.1f}, {high:+.1f}]", psnr
