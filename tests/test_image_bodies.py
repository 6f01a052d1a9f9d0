"""Bodies of image APIs: the image in every form, and what is none."""

from __future__ import annotations

import base64
import json

import pytest
from hypothesis import given, strategies as st
from PIL import Image

from uniedit_hf.calls.chat_bodies import ErrorBody
from uniedit_hf.calls.failures import failure_in_body
from uniedit_hf.calls.image_bodies import decoded_image, read_image
from uniedit_hf.calls.messages import BackendError, EncodedImage, PassingFailure, RowFailure, encoded


SOURCE = EncodedImage(encoded(Image.effect_noise((30, 20), 80).convert("RGB")))


@pytest.mark.parametrize("text", ["", "data:image/png;base64", "never an image!", "abcde"])
def test_what_is_not_base64_is_refused(text):
    with pytest.raises(ValueError):
        decoded_image(text)


@given(st.binary(min_size=1, max_size=90), st.booleans(), st.booleans(), st.integers(1, 80))
def test_any_image_comes_back_from_any_base64(data, safe, padded, width):
    text = (base64.urlsafe_b64encode if safe else base64.b64encode)(data).decode()
    text = "\n".join(text[at : at + width] for at in range(0, len(text), width))
    assert decoded_image(text if padded else text.rstrip("=\n")) == data


@pytest.mark.parametrize("body", ["<html>Just a moment</html>", '{"data": [{"b64', "", "null", ": PROCESSING"])
def test_an_editors_body_that_cannot_be_read_is_asked_for_again(body):
    with pytest.raises(PassingFailure):
        read_image(body)


PICTURE = base64.b64encode(SOURCE.data).decode()
DATA_URL, ADDRESS = f"data:image/png;base64,{PICTURE}", "https://images.example/a.png"


@pytest.mark.parametrize(
    "body",
    [
        {"choices": [{"message": {"content": "Here", "images": [{"image_url": {"url": DATA_URL}}]}}]},
        {"choices": [{"message": {"content": [{"type": "image_url", "image_url": {"url": DATA_URL}}]}}]},
        {"choices": [{"message": {"content": f"Here: ![image]({DATA_URL})"}}]},
        {"output": [{"type": "reasoning"}, {"type": "image_generation_call", "result": PICTURE}]},
        {"candidates": [{"content": {"parts": [{"text": "x"}, {"inlineData": {"data": PICTURE}}]}}]},
        {"artifacts": [{"base64": PICTURE}]}, {"result": {"image": PICTURE}}, {"image": {"data": PICTURE}},
        {"data": [{"revised_prompt": "x"}, {"b64_json": PICTURE}]}, {"data": [{"b64_json": f"base64,{PICTURE}"}]},
        {"data": [{"b64_json": PICTURE}], "usage": {"input_tokens": 10**30, "output_tokens": 1e300}},
        {"output": ADDRESS}, {"output": {"results": [{"url": ADDRESS}]}}, {"data": {"image_urls": [ADDRESS]}},
        {"result": {"sample": ADDRESS}}, {"data": [{"b64_json": "", "url": f" {ADDRESS}"}]},
        {"output": {"choices": [{"message": {"content": [{"image": ADDRESS}]}}]}},
        {"choices": [{"message": {"content": f"Here: ![image]({ADDRESS})"}}]},
    ],
)  # fmt: skip
def test_images_are_found_wherever_a_server_puts_them(body):
    found = read_image(json.dumps(body))
    assert (found.image, found.url) in ((SOURCE.data, None), (None, ADDRESS)) and found.refusal is None
    assert found.tokens_in < 2**41 and found.tokens_out < 2**41


@pytest.mark.parametrize(
    "entry",
    [{"b64_json": base64.b64encode(b"<html>Sign in</html>").decode()}, {"url": "file:///etc/passwd"},
     {"url": "ftp://images.example/a.png"}, {"url": "//images.example/a.png"}, {"revised_prompt": ADDRESS}, None],
)  # fmt: skip
def test_what_is_not_an_image_is_neither_an_image_nor_a_refusal(entry):
    found = read_image(json.dumps({"data": [entry]}))
    assert found.image is found.url is found.refusal is None


def test_events_of_an_image_api_are_read():
    text = base64.b64encode(SOURCE.data).decode()
    done = json.dumps({"type": "image_edit.completed", "b64_json": text, "usage": {"input_tokens": 3}})
    part = json.dumps({"type": "image_edit.partial_image", "b64_json": "AAAA"})
    found = read_image(f"event: x\ndata: {part}\n\ndata: {done}\n\n")
    assert found.image == SOURCE.data and found.tokens_in == 3
    with pytest.raises(PassingFailure, match="cut"):
        read_image(f"data: {part}\n\n")


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        ({"message": "overloaded", "code": 503}, PassingFailure),
        ({"message": "slow down", "code": 429}, PassingFailure),
        ({"message": "Insufficient credits", "code": 402}, BackendError),
        ({"message": "Billing hard limit has been reached"}, BackendError),
        ({"message": "too long", "code": 400}, RowFailure),
    ],
)
def test_an_error_with_status_200_is_sorted_as_its_status_would_be(error, kind):
    with pytest.raises(ErrorBody) as caught:
        read_image(json.dumps({"error": error}))
    assert type(failure_in_body("mine", "m", caught.value, "")) in (kind, ErrorBody)
    assert isinstance(failure_in_body("mine", "m", caught.value, ""), kind)
