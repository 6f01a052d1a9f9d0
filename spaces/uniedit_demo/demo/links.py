"""Settings in the page's address, so that they can be shared: `?tab=edit&text=...&seed=7`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


TABS = ("edit", "ask", "generate")

# Copies the address of the page with the settings of a tab and the seed of its results, and says so. The arguments are
# the tab, its settings in order, and the seed that was used. A page without https has no clipboard: it shows the link.
COPY = """
async (tab, text, seed, steps, text_guidance, image_guidance, thinking, used_seed) => {
  const link = new URL(window.location.href.split('?')[0]);
  if (seed === null || seed < 0) seed = used_seed;
  const values = {tab, text, seed, steps, text_guidance, image_guidance, thinking};
  for (const [name, value] of Object.entries(values))
    if (value !== null && value !== undefined && value !== '') link.searchParams.set(name, value);
  const held = seed >= 0 && seed !== null ? `text, settings and seed ${seed}` : 'text and settings';
  try {
    await navigator.clipboard.writeText(link.href);
    return `Link copied: it holds ${held}, but no image.`;
  } catch {
    return `Copy this link; it holds ${held}, but no image: <${link.href}>`;
  }
}
"""


@dataclass(frozen=True)
class Link:
    """The settings in an address; None where they are missing or invalid."""

    tab: str | None = None
    text: str | None = None
    seed: int | None = None
    steps: int | None = None
    text_guidance: float | None = None
    image_guidance: float | None = None
    thinking: int | None = None


def read_link(parameters: Mapping[str, str], longest: int) -> Link:
    """The settings in an address; invalid ones are ignored, because anyone may write one.

    Args:
        parameters: Parameters of the address.
        longest: Characters of the text.
    """
    tab, text = parameters.get("tab"), parameters.get("text")
    return Link(
        tab=tab if tab in TABS else None,
        text=text[:longest] if text else None,
        seed=_number(parameters, "seed", int, 0, 2**31 - 1),
        steps=_number(parameters, "steps", int, 1, 99),
        text_guidance=_number(parameters, "text_guidance", float, 1, 10),
        image_guidance=_number(parameters, "image_guidance", float, 1, 10),
        thinking=_number(parameters, "thinking", int, 0, 4096),
    )


def _number(parameters: Mapping[str, str], name: str, kind: type, low: float, high: float):
    try:
        value = kind(parameters.get(name, ""))
    except ValueError:
        return None
    return value if low <= value <= high else None
