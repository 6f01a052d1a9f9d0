"""How full packs are, how long planning takes, and how the official BAGEL packer does on the same rows.

    python -m benchmarks.packing [--rows 100000] [--json]

The rows are simulated, from sizes alone: width and height independent multiples of 16 from 512 to 1024, the same for
source and target, and 60 to 250 text tokens. Samples come from the real recipe with the paper's dropouts: the text is
left out with probability 0.1, the ViT sees every source, the VAE none. The budget is 11,520 tokens, the window 64.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from collections import Counter, deque
from dataclasses import asdict, dataclass

from uniedit_hf.models.bagel.image_processing_bagel import fit_size
from uniedit_hf.packing import plan_packs
from uniedit_hf.recipes import Conditioning, draw_dropout, edit_sample
from uniedit_hf.segments import DRAWING, UNDERSTANDING, ImageSegment, Sample, Segment


MAX_TOKENS = 11_520
PLANNED_ROWS = 148_000
SEED = 0
BOTH_VIEWS = Conditioning(source_views=(DRAWING, UNDERSTANDING))


def simulated_row(number: int, draw: random.Random) -> dict:
    """A row as the planner sees it, without images. Its instruction has one character for each text token."""
    size = (16 * draw.randint(32, 64), 16 * draw.randint(32, 64))
    instruction = "x" * draw.randint(60, 250)
    return {"id": str(number), "instruction": instruction, "source_size": size, "target_size": size}


def count_tokens(segment: Segment) -> int:
    """Tokens of a segment without its two markers, whether or not it was dropped."""
    if not isinstance(segment, ImageSegment):
        return len(segment.text)
    longest, shortest, stride = (518, 224, 14) if segment.view == UNDERSTANDING else (1024, 512, 16)
    width, height = fit_size(*segment.size, longest, shortest, stride)
    return (width // stride) * (height // stride)


def packed_length(sample: Sample) -> int:
    """Tokens that a sample takes in a pack: two markers per segment, nothing for a dropped one."""
    return sum(count_tokens(segment) + 2 for segment in sample.segments if not segment.dropped)


@dataclass
class OfficialPacking:
    """The result of the official packer."""

    packs: int = 0
    tokens: int = 0
    trained: int = 0
    discarded: int = 0


def official_packing(lengths: list[int], charged: list[int], expected: int = 10_240) -> OfficialPacking:
    """The official packer, written from its description: a pack is given out once it holds the expected tokens; a
    sample that does not fit waits in a buffer that is always asked first; if it does not fit from there either, the
    pack is given out and the sample is lost.

    Args:
        lengths: Tokens that each sample really takes.
        charged: Tokens by which it is tested whether it fits: before dropout, so with text and both source views.
        expected: Tokens at which a pack is given out, and the most that one sample is charged.
    """
    result, held = OfficialPacking(), []
    rows, buffer = iter(range(len(lengths))), deque()

    def give_out():
        result.packs += 1
        result.tokens += sum(held)
        result.trained += len(held)
        held.clear()

    while True:
        buffered = bool(buffer)
        row = buffer.popleft() if buffered else next(rows, None)
        if row is None:
            return result
        if charged[row] > expected:
            result.discarded += 1
        elif sum(held) + charged[row] <= MAX_TOKENS:
            held.append(lengths[row])
            if sum(held) >= expected:
                give_out()
        elif buffered:
            result.discarded += 1
            give_out()
        else:
            buffer.append(row)


def planned(num_rows: int):
    """Simulated rows, their packed lengths, their plan, and the seconds that the last two took."""
    draw = random.Random(SEED)
    rows = [simulated_row(number, draw) for number in range(num_rows)]
    begun = time.perf_counter()
    lengths = [packed_length(draw_dropout(edit_sample(row), SEED, epoch=0)) for row in rows]
    counted = time.perf_counter()
    plan = plan_packs(lengths, MAX_TOKENS, seed=SEED)
    return rows, lengths, plan, {"lengths": counted - begun, "packs": time.perf_counter() - counted}


def compare(num_rows: int) -> dict:
    """Our packing and the official one, which never gives out its last, unfinished pack, on the same rows."""
    rows, lengths, plan, seconds = planned(num_rows)
    seen = Counter(index for pack in plan.packs for index in pack)
    ours = {
        "fill": plan.fill,
        "fill_without_last": sum(plan.tokens[:-1]) / ((len(plan) - 1) * MAX_TOKENS),
        "packs": len(plan),
        "samples_per_pack": num_rows / len(plan),
        "lost": num_rows - len(seen),
        "repeated": sum(seen.values()) - len(seen),
        "seconds": seconds,
    }
    theirs = official_packing(lengths, [packed_length(edit_sample(row, BOTH_VIEWS)) for row in rows])
    official = {
        **asdict(theirs),
        "fill": theirs.tokens / (theirs.packs * MAX_TOKENS),
        "samples_per_pack": theirs.trained / theirs.packs,
        "never_trained": theirs.discarded / (theirs.trained + theirs.discarded),
    }
    return {"rows": num_rows, "max_tokens": MAX_TOKENS, "window": 64, "ours": ours, "official": official}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=100_000, help="rows to simulate")
    parser.add_argument("--json", action="store_true", help="print one line of JSON")
    options = parser.parse_args()
    if options.rows < 100:
        parser.error(f"--rows {options.rows} is too few to say how full packs are; simulate at least 100.")
    result = compare(options.rows)
    result[f"seconds_for_{PLANNED_ROWS}_rows"] = planned(PLANNED_ROWS)[-1]
    print(json.dumps(result, indent=None if options.json else 2))


if __name__ == "__main__":
    main()
