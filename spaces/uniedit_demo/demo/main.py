"""Assembles the page and serves it."""

from __future__ import annotations

import socket
from functools import partial
from importlib.util import find_spec

import gradio as gr

from . import layout
from .handlers import ANY_SEED, Handlers, compare
from .history import remember, source_of
from .limits import Limits, Page
from .links import COPY, TABS, Link, read_link
from .models import SMALL_WORLD, Decorate, Pair, load_pair, zero_gpu
from .notices import notice
from .request_examples import Example, nearest
from .theme import CSS, HEAD, SMALL_PICTURES, theme


QUEUE = "models"  # all that needs a model waits in one queue, served in order
PRIVATE = {"api_visibility": "private", "show_progress": "hidden"}


def build(pair: Pair, limits: Limits | None = None, gpu=None) -> gr.Blocks:
    """The page.

    Args:
        pair: The models that it shows.
        limits: Limits of one user.
        gpu: Makes decorators for functions that need the GPU for so many seconds; see `models.zero_gpu`.
    """
    limits = limits or Limits()
    handlers, on_gpu = Handlers(pair, limits), (gpu or zero_gpu())(limits.seconds)
    with Page(
        title="Uni-Edit, before and after",
        analytics_enabled=False,
        delete_cache=(60, limits.keep_seconds),
    ) as page:
        layout.masthead(pair)
        with gr.Tabs(elem_id="tabs") as tabs:
            with gr.Tab("Edit", id="edit"):
                edit = layout.edit_tab(pair, limits)
            with gr.Tab("Ask", id="ask"):
                ask = layout.ask_tab(pair, limits)
            with gr.Tab("Generate", id="generate"):
                generate = layout.generate_tab(pair)
        parts = [edit, ask, generate]
        _connect_edit(edit, handlers, on_gpu)
        _connect_ask(ask, handlers, on_gpu)
        _connect_generate(generate, handlers, on_gpu)
        for tab in parts:
            _connect_examples(tab, pair)
        _connect_history(tabs, parts, limits)
        _connect_links(page, tabs, parts, limits)
        layout.privacy(limits)
    return page.queue(max_size=limits.waiting, default_concurrency_limit=None)


def _connect_edit(tab: layout.Tab, handlers: Handlers, on_gpu: Decorate) -> None:
    settings = [tab.seed, tab.steps, tab.text_guidance, tab.image_guidance, tab.thinking]
    run = _run(tab, on_gpu(handlers.edit), [tab.picture, tab.text, *settings], [tab.used_seed])
    tab.finished = _after_drawing(tab, run, tab.picture)
    run.success(
        on_gpu(handlers.why), [tab.picture, tab.text], tab.why, api_name="why", concurrency_limit=1,
        concurrency_id=QUEUE, show_progress="hidden",
    )  # fmt: skip


def _connect_ask(tab: layout.Tab, handlers: Handlers, on_gpu: Decorate) -> None:
    _run(tab, on_gpu(handlers.ask), [tab.picture, tab.text, tab.thinking], [])


def _connect_generate(tab: layout.Tab, handlers: Handlers, on_gpu: Decorate) -> None:
    settings = [tab.seed, tab.steps, tab.text_guidance, tab.thinking]
    run = _run(tab, on_gpu(handlers.generate), [tab.text, *settings], [tab.used_seed])
    tab.finished = _after_drawing(tab, run, gr.State(None))


def _run(tab: layout.Tab, handler, inputs: list, more_outputs: list):
    """Button and Enter start the handler, Stop ends it; it is also the endpoint `/NAME` of the API."""
    run = gr.on(
        [tab.run.click, tab.text.submit],
        handler,
        inputs,
        [*tab.results, *tab.thoughts, *more_outputs, tab.status],
        api_name=tab.name,
        concurrency_limit=1,
        concurrency_id=QUEUE,
        show_progress="minimal",
        show_progress_on=[tab.status],
        trigger_mode="once",
    )
    tab.stop.click(None, cancels=[run], queue=False, api_visibility="private")
    # after it has really ended, so that a new request can start
    run.failure(lambda: "Stopped.", None, tab.status, queue=False, api_visibility="private", show_progress="hidden")
    return run


def _after_drawing(tab: layout.Tab, run, source):
    """Slider and seed of finished images. What reads them next has to follow the returned event: Gradio writes the
    slider's images over the files of the same images, which can be read only before or after.
    """
    pictures = [tab.comparison, source, *tab.results]
    compared = run.success(compare, pictures, tab.slider, **PRIVATE)
    run.success(lambda: gr.Accordion(open=True), None, tab.fold, **PRIVATE)
    tab.comparison.change(compare, pictures, tab.slider, **PRIVATE)
    tab.reuse.click(None, tab.used_seed, tab.seed, js="(seed) => seed", api_visibility="private")
    return compared


def _connect_history(tabs: gr.Tabs, parts: list[layout.Tab], limits: Limits) -> None:
    """A finished request becomes a tile; a pressed tile opens large and restores its request."""
    history = gr.State([], time_to_live=limits.keep_seconds)
    gallery = layout.history_gallery()
    nothing = gr.State(None)
    for tab in parts:
        if tab.finished is not None:
            values = [tab.used_seed, *(each if each is not None else nothing for each in tab.settings)]
            given = [history, *tab.results, tab.picture or nothing, *values]
            tab.finished.success(partial(remember, tab.name), given, [history, gallery], **PRIVATE)

    def restore(entries: list, event: gr.SelectData) -> dict:
        drawn = entries[event.index]
        tab = next(each for each in parts if each.name == drawn.tab)
        values = {part: value for part, value in zip(tab.settings, drawn.values) if part is not None}
        source = {tab.picture: source_of(drawn)} if tab.picture is not None else {}
        return {tabs: gr.Tabs(selected=tab.name)} | values | source

    filled = [each for tab in parts for each in (*tab.settings, tab.picture) if each is not None]
    gallery.select(restore, history, [tabs, *filled], **PRIVATE)


def _connect_examples(tab: layout.Tab, pair: Pair) -> None:
    """A pressed example fills the request. What small models do not know is said where the result would be."""
    request = [tab.text] if tab.picture is None else [tab.text, tab.picture]

    def fill(example: Example) -> dict:
        return dict(zip(request, (example.text, example.picture)))

    for example, button in zip(tab.examples.requests, tab.examples.buttons):
        button.click(partial(fill, example), None, request, queue=False, **PRIVATE)
    box, words, button, number = tab.notice.box, tab.notice.words, tab.notice.nearest, tab.notice.number
    button.click(lambda which: fill(tab.examples.requests[which]), number, request, queue=False, **PRIVATE)

    def look(text: str | None, picture=None) -> dict:
        said = notice(pair, picture, text)
        if said is None:
            return {box: gr.Column(visible=False)}
        which = nearest(text or "", tab.examples.requests)
        return {box: gr.Column(visible=True), words: said, button: tab.examples.requests[which].text, number: which}

    changes = [tab.run.click, tab.text.submit, tab.text.blur]
    changes += [tab.picture.change] if tab.picture is not None else [tab.text.change]
    gr.on(changes, look, request, [box, words, button, number], queue=False, **PRIVATE)


def _connect_links(page: gr.Blocks, tabs: gr.Tabs, parts: list[layout.Tab], limits: Limits) -> None:
    """An address with settings fills the page in place of the stored example, and buttons copy such an address."""
    nothing = gr.State(None)
    for tab in parts:
        values = [each if each is not None else nothing for each in (*tab.settings, tab.used_seed)]
        tab.share.button.click(None, [gr.State(tab.name), *values], tab.share.note, js=COPY, api_visibility="private")

    def fill(request: gr.Request) -> dict:
        link = read_link(dict(request.query_params), limits.characters)
        if link.tab is None and link == Link():
            return {tabs: gr.skip()}
        tab = next(each for each in parts if each.name == (link.tab or TABS[0]))
        asked = [link.text, link.seed, link.steps, link.text_guidance, link.image_guidance, link.thinking]
        values = {part: value for part, value in zip(tab.settings, asked) if None not in (part, value)}
        return {tabs: gr.Tabs(selected=tab.name)} | _cleared(tab) | values

    shown = [part for tab in parts for part in (*tab.settings, *_cleared(tab)) if part is not None]
    page.load(fill, None, [tabs, *dict.fromkeys(shown)], queue=False, **PRIVATE)


def _cleared(tab: layout.Tab) -> dict:
    """A tab without its stored example."""
    values = {tab.text: "", tab.status: "", **dict.fromkeys(tab.results)}
    values |= {} if tab.picture is None else {tab.picture: None}
    return values | ({} if tab.used_seed is None else {tab.used_seed: ANY_SEED})


def launch(
    base: str,
    tuned: str,
    *,
    host: str = "127.0.0.1",
    port: int | None = None,
    limits: Limits | None = None,
    gpu=None,
    wait: bool = True,
) -> tuple[gr.Blocks, str]:
    """Loads the models and serves the page.

    Args:
        base: Folder or Hub id of the base model.
        tuned: Folder or Hub id of the tuned model.
        host: The address to listen at; 0.0.0.0 for everybody on the network.
        port: The port; the first free one from 7860 if not given.
        limits: Limits of one user.
        gpu: See `build`.
        wait: Whether to serve until Ctrl-C.

    Returns:
        The page and its address.

    Raises:
        OSError: If a model does not exist, or the port is taken.
        ValueError: If there is no such port, or the models do not belong together.
    """
    limits = limits or Limits()
    _check_address(host, port)  # before the models, which take longer
    pair = load_pair(base, tuned)
    page = build(pair, limits, gpu)
    _, address, _ = page.launch(
        server_name=host,
        server_port=port,
        theme=theme(),
        css=CSS + (SMALL_PICTURES if pair.side <= SMALL_WORLD else ""),
        head=HEAD,
        footer_links=["api", "settings"],
        max_file_size=f"{limits.upload_megabytes}mb",
        mcp_server=find_spec("mcp") is not None,
        ssr_mode=False,
        show_error=True,
        quiet=True,
        state_session_capacity=200,
        prevent_thread_lock=True,
        _frontend=False,  # no request to its own address, which Gradio gives up after 3 seconds on a busy machine
    )
    print("; ".join(pair.what_runs()))  # noqa: T201
    if page.mcp_server:
        print(f"MCP tools: {address}gradio_api/mcp/")  # noqa: T201
    elif page.mcp_error:
        print(f"No MCP tools, the page itself runs. {page.mcp_error}")  # noqa: T201
    print(f"Open {address} (Ctrl-C ends it).", flush=True)  # noqa: T201
    if wait:
        page.block_thread()
    return page, address


def _check_address(host: str, port: int | None) -> None:
    """Raises: OSError: Nothing can listen at the host, or not at the port. ValueError: There is no such port."""
    if port is not None and not 0 < port < 2**16:
        raise ValueError(f"There is no port {port}: choose one from 1 to {2**16 - 1}.")
    for number in (0,) if port is None else (0, port):  # 0: any free one
        try:
            with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind((host, number))
        except OSError as error:
            if number:
                raise OSError(
                    f"Nothing can listen at {host}, port {port} ({error.strerror}): choose another port, or leave it "
                    "out for the first free one."
                ) from error
            raise OSError(
                f"Nothing can listen at {host}, which is not an address of this machine ({error.strerror}): use "
                "127.0.0.1 for this machine only, or 0.0.0.0 for the network."
            ) from error
