"""Limits of one request and of all together: the section `limits` of the server's YAML file."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, PositiveInt, ValidationError


Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class Limits(BaseModel):
    """The limits.

    Args:
        batch_tokens: Tokens of a batch: contexts, images and the longest answers. A larger request is refused.
        batch_wait: Seconds that a first request waits for others to join its batch.
        max_requests: Requests under way at a time; further ones get status 429.
        max_connections: Open connections; further ones get status 503.
        max_images: Images that a request may draw (`n`) or show.
        max_new_tokens: Tokens of an answer, and of the reasoning before it.
        max_timesteps: `num_timesteps` of a drawing.
        max_characters: Characters of all texts of a request.
        max_megapixels: Megapixels of an image that is sent.
        max_body_megabytes: Size of a request's body.
        request_seconds: Time for a request once it has arrived, waiting included.
        upload_seconds: Time in which a request must arrive.
        send_seconds: Time in which a client must read the data sent to it.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)

    batch_tokens: PositiveInt = 131_072
    batch_wait: Annotated[float, Field(ge=0, le=10)] = 0.01
    max_requests: PositiveInt = 64
    max_connections: PositiveInt = 256
    max_images: PositiveInt = 4
    max_new_tokens: PositiveInt = 2048
    max_timesteps: PositiveInt = 200
    max_characters: PositiveInt = 20_000
    max_megapixels: Positive = 25.0
    max_body_megabytes: Positive = 40.0
    request_seconds: Positive = 300.0
    upload_seconds: Positive = 30.0
    send_seconds: Positive = 30.0

    @property
    def max_pixels(self) -> int:
        """Width times height of an image at most."""
        return round(self.max_megapixels * 1e6)

    @property
    def max_bytes(self) -> int:
        """Bytes of a body at most."""
        return round(self.max_body_megabytes * 1e6)


def limits_from(given: dict[str, Any]) -> Limits:
    """The limits of a YAML file.

    Raises:
        ValueError: Naming the first one that is unknown or out of its range.
    """
    try:
        return Limits(**given)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        name = ".".join(map(str, first["loc"]))
        if first["type"] == "extra_forbidden":
            known = ", ".join(Limits.model_fields)
            raise ValueError(f"There is no limit {name}: choose from {known}.") from None
        raise ValueError(f"The limit {name} cannot be used: {first['msg']}.") from None
