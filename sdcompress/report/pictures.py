"""The picture sheet: every pair with its prompt, original above compressed."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from sdcompress.evaluation.samples import SIDES
from sdcompress.report.model import ReportData
from sdcompress.report.number_text import number_text
from sdcompress.report.quality_model import Sample

if TYPE_CHECKING:
    from PIL.Image import Image
    from PIL.ImageFont import FreeTypeFont, ImageFont

MOST_PAIRS = 16
SHORTEST_SIDE, LONGEST_SIDE = 160, 256  # of a picture on the sheet, pixels
GAP = 14
LABELS = 104  # width of the column that says original and compressed
FONT_SIZE = 15
LINE = 19
MOST_LINES = 4
PAPER, INK, FAINT = (255, 255, 255), (20, 20, 20), (110, 110, 110)


def draw_sheet(report: ReportData, folder: Path) -> Image:
    """Return the sheet of the first 16 pairs; small pictures are enlarged by whole factors, pixels kept square."""
    from PIL import Image, ImageDraw, ImageFont

    samples = report.samples[:MOST_PAIRS]
    pairs = [[_fit(folder / sample.side(side).picture) for side in SIDES] for sample in samples]
    cell = max(max(picture.width for picture in pair) for pair in pairs)
    tall = max(max(picture.height for picture in pair) for pair in pairs)
    columns = count_columns(len(pairs))
    font = ImageFont.load_default(FONT_SIZE)
    captions = [wrap(sample.prompt, cell, font) for sample in samples]
    rows = [range(start, min(start + columns, len(pairs))) for start in range(0, len(pairs), columns)]
    text_heights = [max(len(captions[i]) for i in row) * LINE for row in rows]
    block = 2 * tall + 4 + LINE + 2 * GAP  # a row of pairs without its prompts
    sheet = Image.new(
        "RGB", (LABELS + columns * (cell + GAP) + GAP, sum(text_heights) + len(rows) * block + GAP), PAPER
    )
    draw = ImageDraw.Draw(sheet)
    top = GAP
    for row, text_height in zip(rows, text_heights, strict=True):
        upper = top + text_height + 4
        lower = upper + tall + 4
        for label, place in zip(SIDES, (upper, lower), strict=True):
            draw.text((LABELS - GAP, place + tall // 2), label, fill=INK, font=font, anchor="rm")
        for column, index in enumerate(row):
            left = LABELS + column * (cell + GAP)
            for line, words in enumerate(reversed(captions[index])):
                draw.text((left, upper - 4 - line * LINE), words, fill=INK, font=font, anchor="ld")
            for picture, place in zip(pairs[index], (upper, lower), strict=True):
                sheet.paste(picture, (left, place))
            draw.text((left, lower + tall + 3), _note(samples[index]), fill=FAINT, font=font)
        top = upper + block - 4
    return sheet


def count_columns(pairs: int) -> int:
    """Return the pairs in a row: all of up to six, else as many as fill the fewest rows of at most eight evenly."""
    if pairs <= 6:
        return pairs
    rows = -(-pairs // 8)
    return -(-pairs // rows)


def wrap(text: str, width: int, font: FreeTypeFont | ImageFont) -> list[str]:
    """Return the text in at most four lines no wider than `width` pixels; what does not fit ends in dots."""
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if font.getlength(longer) <= width:
            lines[-1] = longer
            continue
        while font.getlength(word) > width:
            fits = next(n for n in range(len(word), 0, -1) if n == 1 or font.getlength(word[:n]) <= width)
            lines.append(word[:fits])
            word = word[fits:]
        lines.append(word)
    lines = [line for line in lines if line] or [""]
    if len(lines) > MOST_LINES:
        last = lines[MOST_LINES - 1]
        while last and font.getlength(f"{last}...") > width:
            last = last[:-1]
        lines = [*lines[: MOST_LINES - 1], f"{last}..."]
    return lines


def _fit(file: Path) -> Image:
    from PIL import Image

    picture = Image.open(file).convert("RGB")
    longest = max(picture.size)
    if longest < SHORTEST_SIDE:
        factor = -(-SHORTEST_SIDE // longest)
        return picture.resize((picture.width * factor, picture.height * factor), Image.Resampling.NEAREST)
    if longest > LONGEST_SIDE:
        picture.thumbnail((LONGEST_SIDE, LONGEST_SIDE), Image.Resampling.LANCZOS)
    return picture


def _note(sample: Sample) -> str:
    blocked = [side for side in SIDES if sample.side(side).blocked]
    if blocked:
        return "blocked" if len(blocked) == 2 else f"{blocked[0]} blocked"
    if sample.identical:
        return "identical"
    return "" if sample.psnr_db is None else f"PSNR {number_text(sample.psnr_db, 1)} dB"
