"""An overview image of a data set: source, instruction and target side by side."""

from __future__ import annotations

from datasets import Dataset
from PIL import Image, ImageDraw, ImageFont

from uniedit_hf.schema import TASK_CATEGORIES
from uniedit_hf.synthesis.records import variant_choices


COLUMNS, ROWS = 3, 6
SIDE = 144
ARROW = 36
MARGIN = 18
TEXT_HEIGHT = 128
CARD = (2 * SIDE + ARROW, SIDE + TEXT_HEIGHT)
INK, FAINT, PAPER, FRAME = "#1c2330", "#6b7484", "#ffffff", "#c9cfd9"
FONT_SIZE, TAG_SIZE = 14, 12


def contact_sheet(edits: Dataset) -> Image.Image:
    """Up to 18 rows, spread evenly over the data set, in a grid of cards."""
    number = min(COLUMNS * ROWS, len(edits))
    rows = -(-number // COLUMNS)
    width, height = CARD[0] + 2 * MARGIN, CARD[1] + MARGIN
    sheet = Image.new("RGB", (COLUMNS * width, rows * height + MARGIN), PAPER)
    for index in range(number):
        row, column = divmod(index, COLUMNS)
        sheet.paste(_card(edits[index * len(edits) // number]), (column * width + MARGIN, row * height + MARGIN))
    return sheet


def _card(edit: dict) -> Image.Image:
    card = Image.new("RGB", CARD, PAPER)
    draw = ImageDraw.Draw(card)
    for left, name in ((0, "source_image"), (SIDE + ARROW, "target_image")):
        card.paste(edit[name].convert("RGB").resize((SIDE, SIDE), Image.Resampling.BICUBIC), (left, 0))
        draw.rectangle((left, 0, left + SIDE - 1, SIDE - 1), outline=FRAME)
    _arrow(draw, SIDE + 8, SIDE + ARROW - 8, SIDE // 2)
    draw.text((0, SIDE + 8), _tag(edit), fill=FAINT, font=ImageFont.load_default(TAG_SIZE))
    font = ImageFont.load_default(FONT_SIZE)
    lines = wrapped(edit["instruction"], font, CARD[0])
    draw.multiline_text((0, SIDE + 27), "\n".join(lines), fill=INK, font=font, spacing=3)
    return card


def _tag(edit: dict) -> str:
    """Category, depth and, for an intelligent edit, whether its condition is true."""
    choices, category = variant_choices(edit["variant"]), edit["task_category"]
    tag = f"{'size' if category is None else TASK_CATEGORIES[category]} · depth {choices['depth']}"
    if edit["question"] is not None:
        tag += f" · condition {'holds' if choices['condition'] == 'true' else 'fails'} · answer: {edit['answer']}"
    return tag


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
