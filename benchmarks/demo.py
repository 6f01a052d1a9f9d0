"""How long a visitor of the page waits: first preview and result per tab, the page's weight, and what the queue adds.

python benchmarks/demo.py --base assets/small_bagel --tuned runs/quickstart/model
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path

import httpx
import torch
from gradio_client import Client, handle_file
from PIL import Image
from tqdm.auto import tqdm

from uniedit_hf.demo.handlers import Handlers
from uniedit_hf.demo.limits import Limits
from uniedit_hf.demo.main import launch
from uniedit_hf.demo.models import load_pair


PICTURE = Path(__file__).parents[1] / "spaces" / "uniedit_demo" / "demo" / "examples" / "red_circle.png"
REQUESTS = {
    "edit": {"picture": PICTURE, "instruction": "if the shape is red, paint it blue.", "seed": 1},
    "ask": {"picture": PICTURE, "question": "what color is the shape?"},
    "generate": {"prompt": "a big red circle at the left", "seed": 1},
}


def waits(run: Callable[[], Iterator], shown: Callable) -> tuple[float, float]:
    """Seconds to the first output that shows something of a result, and to the last one."""
    begun, first = time.perf_counter(), None
    for output in run():
        if first is None and shown(output):
            first = time.perf_counter() - begun
    return first, time.perf_counter() - begun


def over_the_network(client: Client, name: str) -> tuple[float, float]:
    """The waits of a request to the server."""
    request = {key: handle_file(str(value)) if key == "picture" else value for key, value in REQUESTS[name].items()}
    return waits(lambda: client.submit(**request, api_name=f"/{name}"), lambda output: bool(output[0] or output[1]))


def in_process(handlers: Handlers, name: str) -> tuple[float, float]:
    """The waits of the same request to the function behind it."""
    request = {key: Image.open(value) if key == "picture" else value for key, value in REQUESTS[name].items()}
    return waits(
        lambda: getattr(handlers, name)(**request),
        lambda o: any(isinstance(x, (str, Image.Image)) and x for x in o[:2]),
    )


def page_weight(address: str) -> tuple[float, float, int]:
    """Kilobytes of the page with its scripts and styles, as sent, and of the page alone; and the number of files."""
    sent, files = 0, 0
    with httpx.Client(base_url=address, follow_redirects=True) as client:
        page = client.get("/")
        sent += int(page.headers.get("content-length", len(page.content)))
        names = {part.split('"')[0] for part in page.text.split('="./assets/')[1:]}
        for name in names:
            sent += client.get(f"/assets/{name}").num_bytes_downloaded
            files += 1
    return sent / 1024, len(page.content) / 1024, files


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
    print("| tab | first preview or word | result | the same without server | added by queue and network |")
    print("|---|---|---|---|---|")
    for name in REQUESTS:
        over_the_network(client, name), in_process(handlers, name)
        pairs = [(over_the_network(client, name), in_process(handlers, name)) for _ in tqdm(range(options.repeats))]
        first, result = (statistics.median(served[i] for served, _ in pairs) for i in range(2))
        alone = statistics.median(direct[1] for _, direct in pairs)
        print(f"| {name} | {first:.2f} s | {result:.2f} s | {alone:.2f} s | {1000 * (result - alone):.0f} ms |")
    print(f"queue alone, a call that does nothing: {1000 * empty_call(options.repeats):.0f} ms")
    sent, alone, files = page_weight(address)
    print(f"page: {sent:.0f} KB in {files + 1} files as sent, {alone:.0f} KB of it the page itself")
    versions = ", ".join(f"{each} {version(each)}" for each in ("gradio", "torch", "transformers"))
    print(f"{versions}; {torch.get_num_threads()} thread(s) a model")
    page.close()


def empty_call(repeats: int) -> float:
    """Median seconds of a call through a queue of the same kind to a function that does nothing."""
    import gradio as gr

    with gr.Blocks() as page:
        gr.on(None, lambda text: text, gr.Textbox(), gr.Textbox(), api_name="echo", concurrency_limit=1)
    _, address, _ = page.queue(max_size=20).launch(quiet=True, ssr_mode=False, prevent_thread_lock=True)
    client = Client(address, verbose=False)
    client.predict("", api_name="/echo")
    taken = []
    for _ in range(repeats):
        begun = time.perf_counter()
        client.predict("a", api_name="/echo")
        taken.append(time.perf_counter() - begun)
    page.close()
    return statistics.median(taken)


if __name__ == "__main__":
    main()
