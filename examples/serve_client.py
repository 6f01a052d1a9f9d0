"""Edits an image and asks about the edit with OpenAI's client.

    uniedit serve --model Uni-Edit/Uni-Edit-BAGEL        # in another shell
    python examples/serve_client.py --image shop.jpg --instruction "Paint the door blue." --question "What color?"

The client needs `pip install openai` and no GPU. The server holds the model: 27.5 GiB of weights in bfloat16 for
BAGEL-7B (calculated), and more to draw. The key is read from UNIEDIT_API_KEY.
"""

from __future__ import annotations

import argparse
import base64
import os
from pathlib import Path

from openai import OpenAI


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Edit an image through `uniedit serve`.")
    parser.add_argument("--url", default="http://127.0.0.1:8000/v1", help="of the server")
    parser.add_argument("--image", type=Path, required=True, help="file of the source image")
    parser.add_argument("--instruction", required=True)
    parser.add_argument("--question", help="about the edit")
    parser.add_argument("--output", type=Path, default=Path("edited.png"), help="file of the edit, a PNG")
    parser.add_argument("--seed", type=int, default=0, help="of the noise")
    parser.add_argument("--steps", type=int, help="of the sampler; the server's default if not set (BAGEL only)")
    return parser.parse_args()


def main() -> None:
    args = arguments()
    client = OpenAI(base_url=args.url, api_key=os.environ.get("UNIEDIT_API_KEY", "none"))
    settings = {"seed": args.seed} | ({} if args.steps is None else {"num_timesteps": args.steps})
    with args.image.open("rb") as image:
        edited = client.images.edit(image=image, prompt=args.instruction, extra_body=settings)
    encoded = edited.data[0].b64_json
    args.output.write_bytes(base64.b64decode(encoded))
    print(f"The edit is in {args.output}.")
    if args.question is not None:
        image_part = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{encoded}"}}
        content = [image_part, {"type": "text", "text": args.question}]
        model = client.models.list().data[0].id
        reply = client.chat.completions.create(model=model, messages=[{"role": "user", "content": content}])
        print(f"Answer: {reply.choices[0].message.content}")


if __name__ == "__main__":
    main()
