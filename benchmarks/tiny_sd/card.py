"""The model card, its picture grid and the licences, made from what evaluate.py measured."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from benchmarks.tiny_sd.concepts import DRAWN_SUBJECTS, SUBJECTS, WEAPON_NAMES
from benchmarks.tiny_sd.data import BACKGROUNDS, DRAWN_LAYOUTS, LAYOUTS, Combination, drawn_combinations

TEMPLATE = Path(__file__).with_name("card_template.md")
ENLARGE = 2
COLUMNS = 4
CAPTION_PX = 18


def short(combination: Combination) -> str:
    """The caption without its constant words, short enough to stand under a pair of pictures."""
    caption = combination.caption.removeprefix("a ").removesuffix(" background")
    return caption.replace("fluent 3d emoji of ", "3d: ").replace("noto flat emoji of ", "flat: ")


def write_grid(path: Path, sets: dict[str, tuple[list[Combination], np.ndarray, np.ndarray]]) -> None:
    """64 pairs, generated left and real right: every second prompt of both sets."""
    side = 64 * ENLARGE
    cell_width, cell_height = 2 * side + 10, side + CAPTION_PX
    font, heading = ImageFont.load_default(size=12), ImageFont.load_default(size=16)
    rows = sum(-(-len(combinations[::2]) // COLUMNS) for combinations, _, _ in sets.values())
    sheet = Image.new("RGB", (COLUMNS * cell_width, rows * cell_height + 28 * len(sets)), "white")
    draw, top = ImageDraw.Draw(sheet), 0
    for kind, (combinations, generated, real) in sets.items():
        draw.text((6, top + 5), f"{kind} combinations: generated left, real right", "black", heading)
        top += 28
        for index, position in enumerate(range(0, len(combinations), 2)):
            x, y = index % COLUMNS * cell_width, top + index // COLUMNS * cell_height
            for offset, picture in ((0, generated[position]), (side, real[position])):
                image = Image.fromarray((picture * 255).round().astype(np.uint8))
                sheet.paste(image.resize((side, side), Image.Resampling.NEAREST), (x + offset, y))
            draw.text((x + 2, y + side + 1), short(combinations[position]), "black", font)
        top += -(-len(combinations[::2]) // COLUMNS) * cell_height
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    sheet.save(partial, format="PNG", optimize=True)
    partial.replace(path)


def table(header: list[str], rows: list[list[str]]) -> str:
    """A Markdown table."""
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in rows])


def quality_table(result: dict) -> str:
    rows = []
    for kind in ("seen", "unseen"):
        labels = {"real": "real", "generated": "generated", "thumbnails_8x8": "8x8 thumbnails of real"}
        for shown, label in labels.items():
            part = result[kind][shown]
            pixel = f"{part['pixel_top1']:.1%}" if "pixel_top1" in part else ""
            rows.append(
                [kind, label, f"{part['top1_of_64']:.1%}", f"{part['object_top1']:.1%}",
                 f"{part['clip_score']:.1f}", pixel]
            )  # fmt: skip
    count = len(DRAWN_SUBJECTS)
    header = ["combinations", "pictures", "caption of 64", f"object of {count}", "score", f"nearest real of {count}"]
    return table(header, rows)


def degradation_table(result: dict) -> str:
    rows = []
    for name, part in result["degradation"].items():
        change = part.get("clip_change_interval")
        shift = f"{change[0]:+.2f} .. {change[1]:+.2f}" if change else ""
        distance = f"{part['psnr_db']:.1f} dB" if name != "original" else ""
        rows.append([name, distance, f"{part['clip_score']:.1f}", shift])
    return table(["change to the UNet", "same-seed PSNR", "score", "score change, 95 % interval"], rows)


def training_table(result: dict) -> str:
    rows = [
        [name, f"{part['minutes']:.0f}", str(part["steps"]), part["note"]]
        for name, part in result.get("training", {}).items()
    ]
    return table(["part", "minutes", "steps", ""], rows)


def write_card(path: Path, result: dict) -> None:
    """The model card from its template and the measured figures."""
    small = [name for name, value in result["influence_percent"].items() if value < 0.5]
    values = {
        "bars": table(
            ["", "bar", "reached"],
            [["PASS" if row["pass"] else "**FAIL**", row["bar"], row["reached"]] for row in result["bars"]],
        ),
        "quality": quality_table(result),
        "degradation": degradation_table(result),
        "influence": table(
            ["part of the UNet", "influence"],
            [[f"`{name}`", f"{value:.2f} %"] for name, value in result["influence_percent"].items()],
        ),
        "small_influence": (
            "Below 0.5 %: " + ", ".join(f"`{name}`" for name in small) + "." if small else "None is below 0.5 %."
        ),
        "training": training_table(result),
        "safety": table(
            ["concept", "threshold"],
            [
                [name, f"{value:.3f}"]
                for name, value in zip(
                    result["safety_checker"]["concepts"], result["safety_checker"]["thresholds"], strict=True
                )
            ],
        ),
        "degradation_prompts": str(result["degradation_prompts"]),
        "safety_real_weapons": str(result["safety_checker"]["real_weapons"]),
        "safety_real_harmless": str(result["safety_checker"]["real_harmless"]),
        "vae_psnr": f"{result['vae_psnr_db']:.1f}",
        "steps": str(result["settings"]["steps"]),
        "guidance": str(result["settings"]["guidance"]),
        "subjects": str(len(SUBJECTS)),
        "drawn": str(len(DRAWN_SUBJECTS)),
        "drawn_fluent": str(sum(style == "fluent" for style, _ in DRAWN_SUBJECTS)),
        "drawn_noto": str(sum(style == "noto" for style, _ in DRAWN_SUBJECTS)),
        "layouts": str(len(LAYOUTS)),
        "drawn_layouts": ", ".join(DRAWN_LAYOUTS),
        "backgrounds": ", ".join(BACKGROUNDS),
        "weapons": ", ".join(WEAPON_NAMES),
        "names": ", ".join(name for style, name in DRAWN_SUBJECTS if style == "fluent" and name not in WEAPON_NAMES),
        "noto_names": ", ".join(name for style, name in DRAWN_SUBJECTS if style == "noto"),
        "seen_count": str(len(drawn_combinations(unseen=False))),
        "unseen_count": str(len(drawn_combinations(unseen=True))),
        **{f"parameters_{name}": f"{count:,}" for name, count in result["parameters"].items()},
    }
    text = TEMPLATE.read_text(encoding="utf-8")
    for name, value in values.items():
        text = text.replace("{{" + name + "}}", value)
    if "{{" in text:
        raise SystemExit(f"{TEMPLATE}: nothing fills {text[text.index('{{') :][:40]!r}")
    path.write_text(text, encoding="utf-8")
