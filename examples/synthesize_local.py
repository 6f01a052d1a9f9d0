"""Makes intelligent edits from questions about your images, with models on your own machines.

    vllm serve Qwen/Qwen3-VL-32B-Instruct --port 8001     # or another server in OpenAI's format
    uniedit serve --model Uni-Edit/Uni-Edit-BAGEL         # the editor, on port 8000
    python examples/synthesize_local.py --questions questions.jsonl --chat Qwen/Qwen3-VL-32B-Instruct

Each line of the questions has `image` (a path relative to the file), `question` and `answer`. The same command resumes
a stopped run. `examples/synthesis/` has runs with other models, and `docs/synthesis.md` the stages.
"""

from __future__ import annotations

import argparse

from uniedit_hf.synthesis.run import run
from uniedit_hf.synthesis.settings import settings_from


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Make intelligent edits with models on your own machines.")
    parser.add_argument("--questions", required=True, help="JSON Lines file")
    parser.add_argument("--chat", required=True, help="name of the chat model")
    parser.add_argument("--chat_url", default="http://127.0.0.1:8001/v1", help="of its server")
    parser.add_argument("--editor", default="Uni-Edit/Uni-Edit-BAGEL", help="name of the image editor")
    parser.add_argument("--editor_url", default="http://127.0.0.1:8000/v1", help="of its server")
    parser.add_argument("--size", type=int, default=100, help="number of edits")
    parser.add_argument("--output_dir", default="runs/synthesis/local")
    return parser.parse_args()


def main() -> None:
    args = arguments()
    chat = {"kind": "openai", "model": args.chat, "base_url": args.chat_url}
    editor = {"kind": "openai_images", "model": args.editor, "base_url": args.editor_url}
    settings = {
        "output_dir": args.output_dir,
        "source": {"kind": "rows", "files": [args.questions]},
        "backends": {"chat": chat, "editor": editor},
        "classify": {"backend": "chat"},
        "balance": {"size": args.size, "shares": {"color": 1, "shape": 1, "count": 1, "location": 1}},
        "instruct": {"backend": "chat"},
        "edit": {"backend": "editor"},
        "verify": {"judge": "chat", "quality": "chat"},
    }
    made = run(settings_from(settings, "the settings"))
    if not made.counts.records:
        raise SystemExit(f"No edit was made: {args.output_dir}/report.html says why the rows were rejected.")
    print(f"{made.counts.records} edits in {made.dataset}, {made.counts.rejects} rows rejected: see report.html.")


if __name__ == "__main__":
    main()
