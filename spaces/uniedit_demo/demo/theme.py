"""The style of the page: much space, one accent color, system fonts (nothing is fetched from elsewhere)."""

from __future__ import annotations

import gradio as gr


ACCENT = gr.themes.Color(
    name="accent",
    c50="#eef4ff", c100="#dbe7ff", c200="#bcd2fe", c300="#8fb3fb", c400="#5d8df5", c500="#2f6fdd",
    c600="#255bbd", c700="#204c9b", c800="#1f417e", c900="#1d3868", c950="#142343",
)  # fmt: skip


def theme() -> gr.themes.Base:
    """The theme, for light and dark."""
    fonts = ["system-ui", "-apple-system", "Segoe UI", "Roboto", "sans-serif"]
    return gr.themes.Base(
        primary_hue=ACCENT,
        neutral_hue=gr.themes.colors.slate,
        radius_size=gr.themes.sizes.radius_lg,
        spacing_size=gr.themes.sizes.spacing_lg,
        font=fonts,
        font_mono=["ui-monospace", "monospace"],
    ).set(
        body_background_fill="#fbfcfd",
        body_background_fill_dark="#0e1218",
        block_background_fill="white",
        block_background_fill_dark="#151b24",
        block_border_color="#e6eaef",
        block_border_color_dark="#232c38",
        block_border_width="1px",
        block_shadow="none",
        block_label_background_fill="white",
        block_label_background_fill_dark="#151b24",
        block_label_border_width="0px",
        block_label_text_color="*neutral_500",
        block_label_text_color_dark="*neutral_400",
        block_label_text_weight="500",
        block_title_text_weight="500",
        block_title_text_color="*neutral_600",
        block_title_text_color_dark="*neutral_300",
        input_background_fill="white",
        input_background_fill_dark="#10161e",
        input_border_color="#dfe4ea",
        input_border_color_dark="#2b3644",
        input_border_color_focus="*primary_500",
        button_primary_background_fill="*primary_500",
        button_primary_background_fill_hover="*primary_600",
        button_primary_background_fill_dark="*primary_500",
        button_primary_text_color="white",
        button_secondary_background_fill="transparent",
        button_secondary_background_fill_dark="transparent",
        button_secondary_border_color="#dfe4ea",
        button_secondary_border_color_dark="#2b3644",
        button_border_width="1px",
        button_large_radius="*radius_lg",
    )


CSS = """
.gradio-container { width: 100% !important; max-width: 1180px !important; margin: 0 auto !important;
  padding: 28px 24px 48px !important; }
#masthead, #masthead > * { padding: 0 !important; }
#masthead h1 { font-size: 1.7rem; font-weight: 650; letter-spacing: -0.02em; margin: 0 0 4px; }
#masthead p { color: var(--body-text-color-subdued); font-size: 1.02rem; margin: 0 0 12px; }
#masthead .facts { display: flex; flex-wrap: wrap; gap: 6px; list-style: none; padding: 0; margin: 0 0 8px; }
#masthead .facts li { border: 1px solid var(--border-color-primary); border-radius: 999px; padding: 2px 11px;
  font-size: 0.8rem; color: var(--body-text-color-subdued); margin: 0; }
.workspace { gap: 28px !important; }
.request, .results { gap: 14px !important; }
.choices { border: 0 !important; padding: 0 !important; background: transparent !important; }
.why table, .why .table-wrap, .why thead, .why tbody, .why tr { border: 0 !important; box-shadow: none !important; }
.why table { width: 100%; border-collapse: collapse; font-size: 0.94rem; }
.why th, .why td { border: 0 !important; border-bottom: 1px solid var(--border-color-primary) !important;
  padding: 8px 10px 8px 0 !important; text-align: left !important; background: transparent !important; }
.why th { white-space: nowrap; color: var(--body-text-color-subdued); font-weight: 500; }
.status { min-height: 1.6em; }
.status p { color: var(--body-text-color-subdued); font-size: 0.9rem; margin: 0; font-variant-numeric: tabular-nums; }
button:focus-visible, input:focus-visible, textarea:focus-visible, [role=tab]:focus-visible {
  outline: 2px solid var(--primary-500) !important; outline-offset: 2px; }
.gallery .grid-container { grid-template-columns: repeat(auto-fill, minmax(150px, 1fr)) !important; height: auto; }
.gallery .thumbnail-lg { aspect-ratio: 2 / 1; }
.gallery .grid-wrap { padding-top: 34px; height: auto !important; min-height: 0 !important; }
.gallery { min-height: 0 !important; }
.examples { display: grid !important; grid-template-columns: repeat(auto-fit, minmax(220px, 1fr));
  gap: 8px !important; }
.examples button { justify-content: flex-start; flex-wrap: nowrap; gap: 10px; min-height: 48px;
  padding: 6px 10px !important; text-align: left;
  white-space: normal; font-weight: 400; line-height: 1.3; }
.examples img { width: 34px !important; height: 34px !important; object-fit: cover; border-radius: 6px; flex: none; }
.notice { border-left: 3px solid var(--primary-500); padding: 4px 0 4px 14px !important; gap: 8px !important; }
.notice button { width: fit-content; white-space: normal; text-align: left; }
.gallery:has(.preview) { min-height: 460px !important; }
.keyboard { color: inherit !important; }
.gallery .preview img { width: 100%; height: 100%; object-fit: contain; }
.actions { gap: 8px !important; }
.actions button { flex: none !important; }
.link-note p { color: var(--body-text-color-subdued); font-size: 0.9rem; overflow-wrap: anywhere; }
@media (hover: none), (max-width: 640px) { .keyboard { display: none; } }
#privacy p { color: var(--body-text-color-subdued); font-size: 0.82rem; text-align: center; margin-top: 18px; }
@media (max-width: 640px) {
  .examples { display: flex !important; flex-wrap: nowrap !important; overflow-x: auto; padding-bottom: 6px; }
  .examples button { flex: 0 0 250px; }
  .workspace { flex-direction: column; } .workspace > * { width: 100% !important; }
  .pair { flex-wrap: nowrap !important; gap: 8px !important; }
  .pair > * { min-width: 0 !important; }
  .pair .block:has(img), .pair .block:has(.empty) { height: 180px !important; }
}
"""

# Images of a few pixels fill their places, and their pixels stay sharp.
SMALL_PICTURES = """
.results img, .request img { width: 100%; height: 100%; object-fit: contain; image-rendering: pixelated; }
.gallery img { image-rendering: pixelated; }
"""

# Escape stops what runs; a press of a button that nobody sees does nothing. The margins of a phone are set here, since
# Gradio rewrites rules of `CSS` for its container inside of media queries.
HEAD = """
<meta name="viewport" content="width=device-width, initial-scale=1">
<style>
@media (max-width: 640px) {
  body .gradio-container.gradio-container { padding: 8px 0 24px !important; }
  body .gradio-container.gradio-container > .main { padding: 8px 14px !important; }
}
</style>
<script>
document.addEventListener('keydown', (event) => {
  if (event.key !== 'Escape') return;
  for (const button of document.querySelectorAll('.stop-button'))
    if (button.offsetParent !== null) button.click();
});
</script>
"""
