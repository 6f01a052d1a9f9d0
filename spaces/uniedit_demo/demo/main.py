"""Assembles the page and serves it."""

from __future__ import annotations

import socket
from importlib.util import find_spec

import gradio as gr

from . import layout
from .handlers import Handlers, compare, remember
from .limits import Limits, Page
from .links import COPY, TABS, or_skip, read_link
from .models import SMALL_WORLD, Decorate, Pair, load_pair, zero_gpu
from .theme import CSS, HEAD, SMALL_PICTURES, theme


QUEUE = "models"  # all that needs a model waits in one queue, served in order


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
        history = gr.State([], time_to_live=limits.keep_seconds)
        with gr.Tabs(elem_id="tabs") as tabs:
            with gr.Tab("Edit", id="edit"):
                edit = layout.edit_tab(pair, limits)
            with gr.Tab("Ask", id="ask"):
                ask = layout.ask_tab(pair, limits)
            with gr.Tab("Generate", id="generate"):
                generate = layout.generate_tab(pair)
        gallery = layout.history_gallery()
        layout.privacy(limits)
        _connect_edit(edit, handlers, on_gpu, history, gallery)
        _connect_ask(ask, handlers, on_gpu)
        _connect_generate(generate, handlers, on_gpu, history, gallery)
        _connect_links(page, tabs, [edit, ask, generate], limits)
    return page.queue(max_size=limits.waiting, default_concurrency_limit=None)


def _connect_edit(tab: layout.Tab, handlers: Handlers, on_gpu: Decorate, history, gallery) -> None:
    settings = [tab.seed, tab.steps, tab.text_guidance, tab.image_guidance, tab.thinking]
    run = _run(tab, on_gpu(handlers.edit), [tab.picture, tab.text, *settings], [tab.used_seed])
    _after_drawing(tab, run, tab.picture, history, gallery)
    run.success(
        on_gpu(handlers.why), [tab.picture, tab.text], tab.why, api_name="why", concurrency_limit=1,
        concurrency_id=QUEUE, show_progress="hidden",
    )  # fmt: skip


def _connect_ask(tab: layout.Tab, handlers: Handlers, on_gpu: Decorate) -> None:
    _run(tab, on_gpu(handlers.ask), [tab.picture, tab.text, tab.thinking], [])


def _connect_generate(tab: layout.Tab, handlers: Handlers, on_gpu: Decorate, history, gallery) -> None:
    settings = [tab.seed, tab.steps, tab.text_guidance, tab.thinking]
    run = _run(tab, on_gpu(handlers.generate), [tab.text, *settings], [tab.used_seed])
    _after_drawing(tab, run, gr.State(None), history, gallery)


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


def _after_drawing(tab: layout.Tab, run, source, history, gallery) -> None:
    """Slider, history and seed of finished images."""
    pictures = [tab.comparison, source, *tab.results]
    private = {"api_visibility": "private", "show_progress": "hidden"}
    run.success(compare, pictures, tab.slider, **private)
    run.success(lambda: gr.Accordion(open=True), None, tab.fold, **private)
    tab.comparison.change(compare, pictures, tab.slider, **private)
    run.success(remember, [history, *tab.results, tab.text, tab.used_seed], [history, gallery], **private)
    tab.reuse.click(None, tab.used_seed, tab.seed, js="(seed) => seed", api_visibility="private")


def _connect_links(page: gr.Blocks, tabs: gr.Tabs, parts: list[layout.Tab], limits: Limits) -> None:
    """An address with settings fills the page, and buttons copy such an address."""
    nothing = gr.State(None)
    for tab in parts:
        inputs = [gr.State(tab.name), *(each if each is not None else nothing for each in tab.settings)]
        tab.link.click(None, inputs, None, js=COPY, api_visibility="private")
    filled = [[each for each in tab.settings if each is not None] for tab in parts]

    def fill(request: gr.Request):
        link = read_link(dict(request.query_params), limits.characters)
        asked = [link.text, link.seed, link.steps, link.text_guidance, link.image_guidance, link.thinking]
        values = []
        for tab in parts:
            mine = tab.name == (link.tab or TABS[0])
            named = [(part, value) for part, value in zip(tab.settings, asked) if part is not None]
            values += [or_skip(value if mine else None) for _, value in named]
        return [gr.skip() if link.tab is None else gr.Tabs(selected=link.tab), *values]

    page.load(fill, None, [tabs, *sum(filled, [])], api_visibility="private", show_progress="hidden")


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
    if port is not None:
        _check_port(host, port)  # before the models, which take longer
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


def _check_port(host: str, port: int) -> None:
    if not 0 < port < 2**16:
        raise ValueError(f"There is no port {port}: choose one from 1 to {2**16 - 1}.")
    try:
        with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, port))
    except OSError as error:
        raise OSError(
            f"Nothing can listen at {host}, port {port} ({error.strerror}): choose another port, or leave it out for "
            "the first free one."
        ) from error
