"""The bodies of requests: the fields of OpenAI's API that these models support, and the pipeline's own settings.

Nothing is ignored silently: fields that are not supported are accepted only with their neutral value.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator


Zero = Annotated[float, Field(ge=0, le=0)]
Seed = Annotated[int, Field(ge=0, lt=2**63)]


class Body(BaseModel):
    """Base class of requests; error messages never contain the value that was sent."""

    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _without_nulls(cls, values: Any) -> Any:
        """Treats null as not given, as OpenAI's clients mean it."""
        return (
            {key: value for key, value in values.items() if value is not None} if isinstance(values, dict) else values
        )


class ImageRequest(Body):
    """`/v1/images/generations`. Other fields are settings of the pipeline, such as `text_guidance_scale`."""

    model_config = ConfigDict(extra="allow")

    prompt: str
    model: str | None = None
    n: int = Field(default=1, ge=1)
    size: str = "auto"
    seed: Seed | None = None
    thinking_budget: int = Field(default=0, ge=0)
    stream: bool = False
    partial_images: int = Field(default=0, ge=0, le=3)
    response_format: Literal["b64_json"] = "b64_json"
    output_format: Literal["png", "jpeg", "webp"] = "png"
    output_compression: int | None = Field(default=None, ge=0, le=100)
    quality: Literal["auto"] = "auto"
    background: Literal["auto", "opaque"] = "auto"
    moderation: Literal["auto"] = "auto"
    user: str | None = None


class ImageReference(Body):
    """An image in the JSON form of an edit."""

    image_url: str


class EditRequest(ImageRequest):
    """`/v1/images/edits` as JSON, or the fields of its multipart form other than files."""

    image: str | None = None
    images: list[ImageReference] = []
    source_views: list[str] | None = None


class TextPart(Body):
    type: Literal["text"]
    text: str


class ImageAddress(Body):
    url: str
    detail: Literal["auto", "high"] = "auto"


class ImagePart(Body):
    type: Literal["image_url"]
    image_url: ImageAddress


class Message(Body):
    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[Annotated[TextPart | ImagePart, Field(discriminator="type")]]
    reasoning_content: str | None = None  # accepted in earlier turns, but not shown to the model


class JsonSchema(Body):
    name: str = ""
    description: str | None = None
    strict: bool = True
    # `schema` is a method of pydantic's models
    schema_: dict[str, Any] = Field(default_factory=dict, alias="schema")


class ResponseFormat(Body):
    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None

    @model_validator(mode="after")
    def _with_schema(self) -> ResponseFormat:
        if self.type == "json_schema" and self.json_schema is None:
            raise ValueError("type is json_schema, but json_schema is missing")
        return self

    @property
    def schema_dict(self) -> dict[str, Any] | None:
        """The JSON schema that the answer must match, or None for any text."""
        if self.type == "text":
            return None
        return {"type": "object"} if self.json_schema is None else self.json_schema.schema_


class StreamOptions(Body):
    include_usage: bool = False
    include_obfuscation: Literal[False] = False


class ChatRequest(Body):
    """`/v1/chat/completions`."""

    messages: list[Message] = Field(min_length=1)
    model: str | None = None
    max_tokens: int | None = Field(default=None, ge=1)
    max_completion_tokens: int | None = Field(default=None, ge=1)
    thinking_budget: int = Field(default=0, ge=0)
    temperature: float = Field(default=0.0, ge=0, le=100)
    top_p: float = Field(default=1.0, gt=0, le=1)
    seed: Seed | None = None
    stop: str | list[str] = []
    response_format: ResponseFormat | None = None
    stream: bool = False
    stream_options: StreamOptions | None = None
    user: str | None = None
    n: Annotated[int, Field(ge=1, le=1)] = 1
    presence_penalty: Zero = 0
    frequency_penalty: Zero = 0
    logprobs: Literal[False] = False
