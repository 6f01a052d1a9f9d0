"""A picture of a data set: source, instruction and target side by side."""

from __future__ import annotations

import io
from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

from uniedit_hf.synthesis.records import Record, variant_choices


COLUMNS, ROWS = 3, 6
PICTURE = 144
ARROW = 36
MARGIN = 18
TEXT_HEIGHT = 128
CARD = (2 * PICTURE + ARROW, PICTURE + TEXT_HEIGHT)
INK, FAINT, PAPER, FRAME = "#1c2330", "#6b7484", "#ffffff", "#c9cfd9"
FONT_SIZE, TAG_SIZE = 14, 12


def contact_sheet(records: Sequence[Record]) -> Image.Image:
    """Up to 18 records, spread evenly over the data set, in a grid of cards."""
    number = min(COLUMNS * ROWS, len(records))
    shown = [records[index * len(records) // number] for index in range(number)]
    rows = -(-number // COLUMNS)
    width, height = CARD[0] + 2 * MARGIN, CARD[1] + MARGIN
    sheet = Image.new("RGB", (COLUMNS * width, rows * height + MARGIN), PAPER)
    for index, record in enumerate(shown):
        row, column = divmod(index, COLUMNS)
        sheet.paste(_card(record), (column * width + MARGIN, row * height + MARGIN))
    return sheet


def _card(record: Record) -> Image.Image:
    card = Image.new("RGB", CARD, PAPER)
    draw = ImageDraw.Draw(card)
    for left, encoded in ((0, record.source_image), (PICTURE + ARROW, record.target_image)):
        picture = Image.open(io.BytesIO(encoded)).convert("RGB")
        card.paste(picture.resize((PICTURE, PICTURE), Image.Resampling.BICUBIC), (left, 0))
        draw.rectangle((left, 0, left + PICTURE - 1, PICTURE - 1), outline=FRAME)
    _arrow(draw, PICTURE + 8, PICTURE + ARROW - 8, PICTURE // 2)
    choices = variant_choices(record.variant)
    tag = f"{record.task_category or 'size'} · depth {choices['depth']}"
    if record.question is not None:
        tag += f" · condition {'holds' if choices['condition'] == 'true' else 'fails'} · answer: {record.answer}"
    draw.text((0, PICTURE + 8), tag, fill=FAINT, font=ImageFont.load_default(TAG_SIZE))
    font = ImageFont.load_default(FONT_SIZE)
    lines = wrapped(record.instruction, font, CARD[0])
    draw.multiline_text((0, PICTURE + 27), "\n".join(lines), fill=INK, font=font, spacing=3)
    return card


def wrapped(text: str, font: ImageFont.FreeTypeFont, width: int) -> list[str]:
    """The text in lines no wider than `width` pixels."""
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if font.getlength(longer) <= width:
            lines[-1] = longer
        else:
            lines.append(word)
    return lines


def _arrow(draw: ImageDraw.ImageDraw, left: int, right: int, y: int) -> None:
    draw.line((left, y, right - 4, y), fill=FAINT, width=2)
    draw.polygon(((right, y), (right - 7, y - 5), (right - 7, y + 5)), fill=FAINT)
