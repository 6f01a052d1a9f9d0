"""Bodies of chat completions as servers and gateways send them, and what their failures mean."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, strategies as st

from uniedit_hf.calls.chat_bodies import Completion, error_of, read_completion
from uniedit_hf.calls.failures import is_refusal, sorted_failure
from uniedit_hf.calls.messages import BackendError, PassingFailure, RowFailure


def body(content="hello", **choice) -> str:
    choice = {"message": {"role": "assistant", "content": content}, "finish_reason": "stop"} | choice
    return json.dumps({"model": "m-1", "choices": [choice], "usage": {"prompt_tokens": 3, "completion_tokens": 2}})


def events(*parts: str, end: str = "data: [DONE]\n\n") -> str:
    deltas = [json.dumps({"model": "m-1", "choices": [{"delta": {"content": part}}]}) for part in parts]
    return "".join(f"data: {each}\n\n" for each in deltas) + end


HELLO = Completion("hello", None, "m-1", "stop", 3, 2)


@pytest.mark.parametrize(
    "text",
    [body(), f"\ufeff{body()}", f": OPENROUTER PROCESSING\n\n: still\n{body()}", f"\n\n{body()}\n",
     json.dumps(json.loads(body()), indent=2), f"// a gateway\n{body()}",
     body([{"type": "text", "text": "hel"}, {"type": "text", "text": "lo"}])],
)  # fmt: skip
def test_a_completion_is_read_in_every_dress(text):
    assert read_completion(text) == HELLO


def test_events_are_one_completion():
    assert read_completion(events("hel", "lo")).text == "hello"
    last = 'data: {"choices": [{"delta": {}, "finish_reason": "length"}]}\n\n'
    assert read_completion(events("hel", "lo", end=last)).finish == "length"
    with pytest.raises(PassingFailure, match="cut"):
        read_completion(events("hel", "lo", end=""))


def test_half_a_surrogate_pair_can_be_written():
    found = read_completion(body("good \ud83d, and \U0001f600"))
    assert found.text == "good \ufffd, and \U0001f600" and found.text.encode()


@pytest.mark.parametrize(
    "text",
    [body()[:40], "", "{}", "[]", "null", "7", '{"choices": []}', '{"choices": [{}]}', '{"choices": [7]}', "[" * 5000,
     '{"choices": [{"message": {"content": "a"}}], "usage": {"prompt_tokens": "many"}}', "Service Unavailable"],
)  # fmt: skip
def test_what_is_not_a_completion_may_pass(text):
    with pytest.raises(PassingFailure):
        read_completion(text)


def test_an_error_with_status_200_says_what_it_is():
    with pytest.raises(PassingFailure, match="an error with status 200: overloaded"):
        read_completion('{"error": {"message": "overloaded", "code": 503}}')


def test_refusals_are_data():
    refused = body(None, message={"content": None, "refusal": "I would rather not."})
    assert read_completion(refused).refusal == "I would rather not."
    assert read_completion(body("", finish_reason="content_filter")).refusal == "stopped by the content filter"
    assert read_completion(body("")).text == "" and read_completion(body(None)).text == ""


@given(st.text(max_size=120))
def test_no_body_raises_anything_else(text):
    try:
        read_completion(text)
    except PassingFailure:
        pass
    message, code = error_of(text)
    assert isinstance(message, str) and isinstance(code, str)


@pytest.mark.parametrize(
    "status, message, code, kind",
    [
        (402, "no", "", BackendError), (429, "You exceeded your current quota", "insufficient_quota", BackendError),
        (400, "Billing hard limit has been reached", "billing_hard_limit_reached", BackendError),
        (400, "'max_tokens' is not supported with this model", "unsupported_parameter", BackendError),
        (422, "Extra inputs are not permitted", "", BackendError), (400, "the image is too large", "", RowFailure),
        (429, "Rate limit reached", "rate_limit_exceeded", PassingFailure), (503, "busy", "", PassingFailure),
        (413, "too large", "", RowFailure), (401, "no", "", BackendError), (404, "no", "", BackendError),
    ],
)  # fmt: skip
def test_what_a_failure_means(status, message, code, kind):
    found = sorted_failure("The judge", "m", status, message, "", "", code)
    assert type(found) is kind and not is_refusal(status, message, code)
    if kind is BackendError and status not in (401, 404):
        assert "run the same command again" in str(found) and message in str(found)


@pytest.mark.parametrize("code, message", [("content_policy_violation", "no"), ("content_filter", "no"), ("", (
    "The response was filtered due to the prompt triggering Azure OpenAI's content management policy"))])  # fmt: skip
def test_a_refused_content_is_told_from_a_failure(code, message):
    assert is_refusal(400, message, code) and not is_refusal(500, message, code)
