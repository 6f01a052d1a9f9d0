"""Bodies of chat completions as servers and gateways send them, and what their failures mean."""

from __future__ import annotations

import json
import re

import pytest
from hypothesis import given, strategies as st

from uniedit_hf.calls.chat_bodies import Completion, ErrorBody, error_of, json_in, read_completion
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
     body([{"type": "text", "text": "hel"}, {"type": "text", "text": "lo"}]),
     f"{body()}\n: keep-alive\n", f"{body()}\n\ndata: [DONE]\n", f"{body()}\n<!-- a gateway -->", f")]}}',\n{body()}",
     json.dumps(body()), f"[{body()}]", body(["hel", "lo"]), body({"type": "text", "text": "hello"}),
     body(finish_reason=["stop"]).replace('["stop"]', '"stop"'), body(message={"content": "hello", "refusal": ""})],
)  # fmt: skip
def test_a_completion_is_read_in_every_dress(text):
    assert read_completion(text) == HELLO


def test_events_are_one_completion():
    assert read_completion(events("hel", "lo")).text == "hello"
    last = 'data: {"choices": [{"delta": {}, "finish_reason": "length"}]}\n\n'
    assert read_completion(events("hel", "lo", end=last)).finish == "length"
    with pytest.raises(PassingFailure, match="cut"):
        read_completion(events("hel", "lo", end=""))


@pytest.mark.parametrize("letter", ["\u2028", "\x85", "\x0b", "\x1c"])
def test_a_line_separator_in_a_text_ends_no_event(letter):
    found = read_completion(f'data: {{"choices": [{{"delta": {{"content": "a{letter}b"}}}}]}}\r\n\r\ndata: [DONE]\r\n')
    assert found.text == f"a{letter}b"
    assert read_completion(json.dumps(json.loads(body(f"a{letter}data: b")), ensure_ascii=False)).text[-1] == "b"


def test_a_raw_line_break_in_a_text_is_read():
    assert read_completion(body("hel\\nlo").replace("\\\\n", "\n")).text == "hel\nlo"


@pytest.mark.parametrize(
    "count", ['"many"', "1e999", "NaN", "9" * 30, "9" * 5000, "-3", "[3]", "null", '{"cached": 1}', "true"]
)
def test_a_paid_reply_is_not_lost_to_its_count_of_tokens(count):
    found = read_completion(body().replace('"prompt_tokens": 3', f'"prompt_tokens": {count}'))
    assert found.text == "hello" and found.tokens_out == 2 and 0 <= found.tokens_in < 2**41
    usage = '{"prompt_tokens": 3, "completion_tokens": 2}'
    assert read_completion(body().replace(usage, count)).text == "hello"


@pytest.mark.parametrize(
    "text",
    ['data: {"error": {"message": "overloaded", "code": 503}}\n\ndata: [DONE]\n',
     events("hel", end='event: error\ndata: {"error": {"message": "overloaded"}}\n\n'),
     '[{"error": {"message": "overloaded", "code": 503}}]', '{"choices": null, "error": {"message": "overloaded"}}',
     body("", error={"message": "overloaded"}, finish_reason="error")],
)  # fmt: skip
def test_an_error_is_not_an_empty_reply(text):
    with pytest.raises(ErrorBody, match="overloaded"):
        read_completion(text)


def test_events_say_refusals_and_belong_to_the_first_choice():
    parts = [{"delta": {"refusal": "I would rather"}}, {"delta": {"refusal": " not."}, "finish_reason": "stop"}]
    text = "".join(f"data: {json.dumps({'choices': [part]})}\n\n" for part in parts)
    assert read_completion(text).refusal == "I would rather not."
    both = [{"index": number, "delta": {"content": content}} for number, content in enumerate(("hello", "other"))]
    assert read_completion(f"data: {json.dumps({'choices': both})}\n\ndata: [DONE]\n").text == "hello"
    with pytest.raises(PassingFailure):
        read_completion("data: [DONE]\n")


def test_half_a_surrogate_pair_can_be_written():
    found = read_completion(body("good \ud83d, and \U0001f600"))
    assert found.text == "good \ufffd, and \U0001f600" and found.text.encode()


@pytest.mark.parametrize(
    "text",
    [body()[:40], "", "{}", "[]", "null", "7", '{"choices": []}', '{"choices": [{}]}', '{"choices": [7]}', "[" * 5000,
     "Service Unavailable"],
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
    filtered = json.dumps({"choices": [{"finish_reason": "content_filter", "content_filter_results": {}}]})
    assert read_completion(filtered).refusal == "stopped by the content filter"
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
        (403, "your account balance is insufficient", "", BackendError), (400, "Insufficient funds", "", BackendError),
        (429, "您的账户已欠费，请充值后重试。", "1113", BackendError),
        (412, "the monthly spending limit", "", BackendError),
        (400, "This response_format type is unavailable now", "", BackendError), (498, "busy", "", PassingFailure),
        (400, "This model's maximum context length is 4096 tokens", "context_length_exceeded", RowFailure),
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


@pytest.mark.parametrize(
    "status, message, said",
    [
        (403, "Your organization must be verified", "refuses the key .HTTP 403: Your organization must be verified"),
        (400, "Your organization must be verified", "does not open this model to the account"),
        (400, "The model `m` does not exist", "knows no model 'm'"), (405, "no", "check model and base_url"),
        (410, "retired", "check model and base_url"), (307, "", "another address .HTTP 307.*base_url"),
    ],
)  # fmt: skip
def test_what_holds_for_every_call_names_its_reason(status, message, said):
    found = sorted_failure("The judge", "m", status, message, "", "")
    assert type(found) is BackendError and re.search(said, str(found))


@pytest.mark.parametrize(
    "text",
    ['{"a": 1}', '```json\n{"a": 1}\n```', '  ```\n{"a": 1}```\n', '```JSON\n{"a": 1}```', '\ufeff{"a": 1}\n',
     'Here it is:\n```json\n{"a": 1}\n```\nDone.', 'So: {"a": 1}', '{"a": 1}<|im_end|>',
     '<think>Perhaps {"a": 2}?</think>\n{"a": 1}'],
)  # fmt: skip
def test_the_json_of_an_answer_is_found(text):
    assert json_in(text) == '{"a": 1}'


@pytest.mark.parametrize("text", ['{"a": 1}{"a": 2}', "no", '{"a":', '{"a": "</think>"}', "{" * 5000])
def test_an_answer_that_is_not_one_object_stays(text):
    assert json_in(text) == text
