"""Waiting times of a visitor of the page: first preview and result per tab, the page's weight, and what the queue
adds.

python benchmarks/demo.py --base assets/small_bagel --tuned runs/quickstart/model
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import time
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path

import torch
from gradio_client import Client, handle_file
from PIL import Image
from playwright.sync_api import sync_playwright
from tqdm.auto import tqdm

from uniedit_hf.demo.handlers import Handlers
from uniedit_hf.demo.limits import Limits
from uniedit_hf.demo.main import launch
from uniedit_hf.demo.models import load_pair


PICTURE = Path(__file__).parents[1] / "spaces" / "uniedit_demo" / "demo" / "examples" / "red_circle.png"
REQUESTS = {
    "edit": {"picture": PICTURE, "instruction": "is there a circle? if so, make it blue.", "seed": 1},
    "ask": {"picture": PICTURE, "question": "what color is the shape?"},
    "generate": {"prompt": "a big red circle at the left", "seed": 1},
}


def waits(run: Callable[[], Iterator], shown: Callable) -> tuple[float, float, float]:
    """Seconds to the first output that shows something of a result, to the last one, and of CPU until then."""
    begun, worked, first = time.perf_counter(), time.process_time(), None
    for output in run():
        if first is None and shown(output):
            first = time.perf_counter() - begun
    return first, time.perf_counter() - begun, time.process_time() - worked


def over_the_network(client: Client, name: str) -> tuple[float, float, float]:
    """The waits of a request to the server."""
    request = {key: handle_file(str(value)) if key == "picture" else value for key, value in REQUESTS[name].items()}
    return waits(lambda: client.submit(**request, api_name=f"/{name}"), lambda output: bool(output[0] or output[1]))


def in_process(handlers: Handlers, name: str) -> tuple[float, float, float]:
    """The waits of the same request to the function behind it."""
    request = {key: Image.open(value) if key == "picture" else value for key, value in REQUESTS[name].items()}
    return waits(
        lambda: getattr(handlers, name)(**request),
        lambda o: any(isinstance(x, (str, Image.Image)) and x for x in o[:2]),
    )


def page_weight(address: str) -> tuple[float, int, float]:
    """Kilobytes that a browser is sent for the page, the number of files, and seconds until it can be used."""
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        page = browser.new_page()
        begun = time.perf_counter()
        page.goto(address)
        page.get_by_role("button", name="Edit", exact=True).wait_for()
        seconds = time.perf_counter() - begun
        page.wait_for_load_state("load")
        kinds = "[...performance.getEntriesByType('resource'), ...performance.getEntriesByType('navigation')]"
        sizes = page.evaluate(f"{kinds}.map(each => each.transferSize)")
        browser.close()
    return sum(sizes) / 1024, len(sizes), seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--base", default="assets/small_bagel")
    parser.add_argument("--tuned", default="runs/quickstart/model")
    parser.add_argument("--repeats", type=int, default=10)
    options = parser.parse_args()
    begun = time.perf_counter()
    page, address = launch(options.base, options.tuned, wait=False)
    print(f"start-up with both models: {time.perf_counter() - begun:.1f} s")
    client, handlers = Client(address, verbose=False), Handlers(load_pair(options.base, options.tuned), Limits())
    print(f"load average {os.getloadavg()[0]:.1f}")
    print("| tab | first preview or word | result | without server | added | CPU: result | CPU: without server |")
    print("|---|---|---|---|---|---|---|")
    for name in REQUESTS:
        over_the_network(client, name), in_process(handlers, name)
        pairs = [(over_the_network(client, name), in_process(handlers, name)) for _ in tqdm(range(options.repeats))]
        first, result, work = (statistics.median(served[i] for served, _ in pairs) for i in range(3))
        _, alone, least = (statistics.median(direct[i] for _, direct in pairs) for i in range(3))
        added = f"{1000 * (result - alone):.0f} ms"
        print(f"| {name} | {first:.2f} s | {result:.2f} s | {alone:.2f} s | {added} | {work:.2f} s | {least:.2f} s |")
    for place, (seconds, work) in empty_calls(3 * options.repeats).items():
        print(f"a call that does nothing, {place}: {1000 * seconds:.0f} ms, of CPU {1000 * work:.0f} ms")
    sent, files, seconds = page_weight(address)
    print(f"page: {sent:.0f} KB in {files} files as sent, usable after {seconds:.1f} s")
    versions = ", ".join(f"{each} {version(each)}" for each in ("gradio", "torch", "transformers"))
    print(f"{versions}; {torch.get_num_threads()} thread(s) a model")
    page.close()


def empty_calls(repeats: int) -> dict[str, tuple[float, float]]:
    """Median seconds, and of CPU, of a call to a function that does nothing, through a queue of the same kind and past
    it."""
    import gradio as gr

    with gr.Blocks() as page:
        text = gr.Textbox()
        gr.on(None, lambda text: text, text, text, api_name="queued", concurrency_limit=1)
        gr.on(None, lambda text: text, text, text, api_name="direct", queue=False)
    _, address, _ = page.queue(max_size=20).launch(quiet=True, ssr_mode=False, prevent_thread_lock=True)
    client, taken = Client(address, verbose=False), {"queued": [], "direct": []}
    for _ in range(repeats + 1):
        for name, seconds in taken.items():
            begun, worked = time.perf_counter(), time.process_time()
            client.predict("a", api_name=f"/{name}")
            seconds.append((time.perf_counter() - begun, time.process_time() - worked))
    page.close()
    return {name: tuple(map(statistics.median, zip(*seconds[1:]))) for name, seconds in taken.items()}


if __name__ == "__main__":
    main()
