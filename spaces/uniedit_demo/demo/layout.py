"""The layout of the page, with a stored example in each tab. Its components have no functions; `main.py` adds them."""

from __future__ import annotations

import html
from dataclasses import dataclass

import gradio as gr

from .handlers import ANY_SEED, COMPARISONS, SIDES
from .limits import Limits, number, upload
from .models import SMALL_WORLD, Pair
from .request_examples import Example, StoredExample, read_examples, read_stored


@dataclass
class Share:
    """Copies a link, and says so."""

    button: gr.Button
    note: gr.Markdown


@dataclass
class Examples:
    """Requests to press, one button each."""

    requests: list[Example]
    buttons: list[gr.Button]


@dataclass
class Notice:
    """A notice that the small models do not know parts of a request, with the nearest example to press."""

    box: gr.Column
    words: gr.Markdown
    nearest: gr.Button
    number: gr.State


@dataclass
class Tab:
    """The components of one tab; a tab without images or answers has None there."""

    name: str
    run: gr.Button
    stop: gr.Button
    text: gr.Textbox
    thinking: gr.Slider
    results: list
    thoughts: list[gr.Textbox]
    status: gr.Markdown
    share: Share
    examples: Examples
    notice: Notice
    picture: gr.Image | None = None
    seed: gr.Number | None = None
    steps: gr.Slider | None = None
    text_guidance: gr.Slider | None = None
    image_guidance: gr.Slider | None = None
    used_seed: gr.Number | None = None
    reuse: gr.Button | None = None
    comparison: gr.Radio | None = None
    slider: gr.ImageSlider | None = None
    fold: gr.Accordion | None = None
    why: gr.Markdown | None = None
    finished: object = None  # the event of a finished drawing

    @property
    def settings(self) -> list:
        """The settings in a link, in the order of `links.COPY`."""
        return [self.text, self.seed, self.steps, self.text_guidance, self.image_guidance, self.thinking]


def masthead(pair: Pair) -> None:
    """Title, one sentence, and what is running."""
    facts = "".join(f"<li>{html.escape(fact)}</li>" for fact in pair.what_runs())
    gr.HTML(
        "<h1>Uni-Edit, before and after</h1><p>One model and the same model tuned on intelligent edits: the same "
        f"request, the same seed, side by side.</p><ul class='facts' aria-label='What is running'>{facts}</ul>",
        elem_id="masthead",
    )


def edit_tab(pair: Pair, limits: Limits) -> Tab:
    """Image and instruction on the left, both edits on the right."""
    examples, stored = _examples(pair, "edit"), read_stored("edit")
    with gr.Row(elem_classes="workspace"):
        with gr.Column(scale=4, min_width=300, elem_classes="request"):
            picture = upload(limits, stored, label="Source image", height=260, elem_id="edit-source")
            text = _text("Instruction", examples, stored)
            run, stop = _buttons("Edit")
            settings = _settings(pair, image_guidance=True)
        with gr.Column(scale=7, min_width=300, elem_classes="results"):
            notice = _notice()
            results, status, used_seed, reuse, share = _pictures(stored)
            comparison, slider, fold = _comparison(COMPARISONS)
            with gr.Accordion("Why: what the models see", open=False):
                why = gr.Markdown(
                    "After an edit, both models answer the questions that the instruction holds.",
                    label="Why", elem_classes="why",
                )  # fmt: skip
            thoughts = _thoughts(pair)
    return Tab(
        "edit", run, stop, text, results=results, thoughts=thoughts, status=status, picture=picture, reuse=reuse,
        used_seed=used_seed, comparison=comparison, slider=slider, fold=fold, why=why, share=share, examples=examples,
        notice=notice, **settings,
    )  # fmt: skip


def ask_tab(pair: Pair, limits: Limits) -> Tab:
    """Image and question on the left, both answers on the right."""
    examples, stored = _examples(pair, "ask"), read_stored("ask")
    with gr.Row(elem_classes="workspace"):
        with gr.Column(scale=4, min_width=300, elem_classes="request"):
            picture = upload(limits, stored, label="Image", height=260, elem_id="ask-source")
            text = _text("Question", examples, stored)
            run, stop = _buttons("Ask")
            with gr.Accordion("Settings", open=False, visible=pair.thinks):
                thinking = _thinking(pair)
        with gr.Column(scale=7, min_width=300, elem_classes="results"):
            notice = _notice()
            with gr.Row(elem_classes="pair"):
                results = [
                    gr.Textbox(answer, label=name, lines=4, interactive=False, buttons=["copy"])
                    for name, answer in zip(SIDES, stored.results)
                ]
            status = _status(stored)
            with gr.Row(elem_classes="actions"):
                button = _action("Copy link")
            share = Share(button, _link_note())
            thoughts = _thoughts(pair)
    return Tab("ask", run, stop, text, thinking, results, thoughts, status, share, examples, notice, picture=picture)


def generate_tab(pair: Pair) -> Tab:
    """A description on the left, both drawings on the right."""
    examples, stored = _examples(pair, "generate"), read_stored("generate")
    with gr.Row(elem_classes="workspace"):
        with gr.Column(scale=4, min_width=300, elem_classes="request"):
            text = _text("Description", examples, stored)
            run, stop = _buttons("Generate")
            settings = _settings(pair, image_guidance=False)
        with gr.Column(scale=7, min_width=300, elem_classes="results"):
            notice = _notice()
            results, status, used_seed, reuse, share = _pictures(stored)
            comparison, slider, fold = _comparison(COMPARISONS[:1])
            thoughts = _thoughts(pair)
    return Tab(
        "generate", run, stop, text, results=results, thoughts=thoughts, status=status, reuse=reuse,
        used_seed=used_seed, comparison=comparison, slider=slider, fold=fold, share=share, examples=examples,
        notice=notice, **settings,
    )  # fmt: skip


def history_gallery() -> gr.Gallery:
    """The images drawn on this visit."""
    return gr.Gallery(
        label="This visit: base left, tuned right", columns=4, height="auto", format="png", object_fit="contain",
        interactive=False, visible=False, elem_classes="gallery", buttons=["download", "fullscreen"],
    )  # fmt: skip


def privacy(limits: Limits) -> None:
    """A note that says what happens to uploads."""
    gr.HTML(
        f"<p>Nothing you upload is kept: files are deleted after {limits.keep_seconds // 60} minutes at the latest. "
        "<span class='keyboard'>Press Escape to stop.</span></p>",
        elem_id="privacy",
    )


# --- pieces ---------------------------------------------------------------------------------------------------------


def _text(label: str, examples: Examples, stored: StoredExample) -> gr.Textbox:
    return gr.Textbox(stored.example.text, label=label, placeholder=examples.requests[0].text, lines=1, max_lines=6)


def _examples(pair: Pair, tab: str) -> Examples:
    """Examples that suit the models, as buttons with the whole text."""
    requests = read_examples(pair.side <= SMALL_WORLD, tab)
    with gr.Row(elem_classes="examples"):
        buttons = [gr.Button(each.text, icon=each.picture, size="sm", min_width=0) for each in requests]
    return Examples(requests, buttons)


def _notice() -> Notice:
    with gr.Column(visible=False, elem_classes="notice") as box:
        words = gr.Markdown("", label="What these models do not know")
        nearest = gr.Button("", size="sm")
    return Notice(box, words, nearest, gr.State(0))


def _action(text: str) -> gr.Button:
    return gr.Button(text, size="sm", scale=0, min_width=130)


def _link_note() -> gr.Markdown:
    return gr.Markdown("", label="Link", elem_classes="link-note")


def _status(stored: StoredExample) -> gr.Markdown:
    return gr.Markdown(stored.status, label="Status", elem_classes="status")


def _buttons(verb: str) -> tuple[gr.Button, gr.Button]:
    with gr.Row():
        run = gr.Button(verb, variant="primary", scale=3, min_width=120)
        stop = gr.Button("Stop", variant="secondary", scale=1, min_width=80, elem_classes="stop-button")
    return run, stop


def _settings(pair: Pair, image_guidance: bool) -> dict:
    defaults = pair.defaults
    with gr.Accordion("Settings", open=False):
        seed = gr.Number(
            label="Seed", info=f"{ANY_SEED} draws a new one every time.", value=ANY_SEED, minimum=ANY_SEED, precision=0
        )  # an empty one would show 0, in Gradio 6.31
        steps = gr.Slider(1, 99, value=defaults.steps, step=1, label="Steps", visible=pair.draws_in_steps)
        guidance = gr.Slider(1, 10, value=defaults.text_guidance, step=0.1, label="Text guidance")
        image = None
        if image_guidance:
            image = number(gr.Slider(1, 10, value=defaults.image_guidance, step=0.1, label="Image guidance"))
        settings = {"thinking": _thinking(pair)}
    for each in (seed, steps, guidance):
        number(each)
    return settings | {"seed": seed, "steps": steps, "text_guidance": guidance, "image_guidance": image}


def _thinking(pair: Pair) -> gr.Slider:
    slider = gr.Slider(
        0, pair.defaults.thinking, value=0, step=1, label="Think first", info="Tokens of reasoning at most; 0 is off.",
        visible=pair.thinks,
    )  # fmt: skip
    return number(slider)


def _pictures(stored: StoredExample) -> tuple[list[gr.Image], gr.Markdown, gr.Number, gr.Button, Share]:
    with gr.Row(elem_classes="pair"):
        results = [
            gr.Image(
                drawn,
                label=name,
                type="pil",
                format="png",
                height=300,
                interactive=False,
                buttons=["download", "fullscreen"],
            )  # fmt: skip
            for name, drawn in zip(SIDES, stored.results)
        ]
    status = _status(stored)
    used_seed = gr.Number(stored.seed, label="Seed of these images", precision=0, interactive=False, visible="hidden")
    with gr.Row(elem_classes="actions"):
        reuse, link = _action("Keep this seed"), _action("Copy link")
    share = Share(link, _link_note())
    return results, status, used_seed, reuse, share


def _comparison(choices: tuple[str, ...]) -> tuple[gr.Radio, gr.ImageSlider, gr.Accordion]:
    with gr.Accordion("Compare", open=False) as fold:
        comparison = gr.Radio(
            list(choices), value=choices[0], label="What to lay over each other", show_label=False, container=False,
            visible=len(choices) > 1, elem_classes="choices",
        )  # fmt: skip
        slider = gr.ImageSlider(
            label="Drag to compare",
            type="pil",
            format="png",
            interactive=False,
            max_height=320,
            buttons=["fullscreen"],
        )
    return comparison, slider, fold


def _thoughts(pair: Pair) -> list[gr.Textbox]:
    with gr.Accordion("Thoughts", open=False, visible=pair.thinks):
        with gr.Row(elem_classes="pair"):
            return [gr.Textbox(label=f"Thoughts of {side.lower()}", lines=3, interactive=False) for side in SIDES]
