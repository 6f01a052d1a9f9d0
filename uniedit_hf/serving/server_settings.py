"""Settings of the server: flags of `uniedit serve`, or lines of its YAML file."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal


@dataclass
class ServerSettings:
    model: str = field(metadata={"help": "folder or Hub id of the model", "metavar": "NAME"})
    served_name: str | None = field(
        default=None, metadata={"help": "name that requests use; that of the model by default", "metavar": "NAME"}
    )
    host: str = field(
        default="127.0.0.1", metadata={"help": "address to listen on; 0.0.0.0 accepts connections from the network"}
    )
    port: int = field(default=8000, metadata={"help": "port; 0 picks a free one"})
    device: str | None = field(
        default=None, metadata={"help": "device of the model; by default a GPU if there is one"}
    )
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = field(
        default="auto", metadata={"help": "dtype of the weights; auto is bfloat16 on a GPU and float32 on a CPU"}
    )
    api_keys_env: str = field(
        default="UNIEDIT_API_KEYS",
        metadata={
            "help": "environment variable with API keys, separated by commas; if empty, anyone may send requests"
        },
    )
    batch_size: int = field(default=8, metadata={"help": "requests processed in one batch"})
    fetch_images: bool = field(default=False, metadata={"help": "accept image URLs, but never of a private network"})
    load: dict = field(
        default_factory=dict,
        metadata={"help": "further arguments of the pipeline's from_pretrained (set in the YAML file)"},
    )
    autoencoder: dict = field(
        default_factory=dict, metadata={"help": "dtype and tile of the autoencoder (set in the YAML file)"}
    )
    limits: dict = field(
        default_factory=dict, metadata={"help": "limits of requests, see docs/serving.md (set in the YAML file)"}
    )

    def __post_init__(self):
        if self.batch_size < 1:
            raise ValueError(f"batch_size is {self.batch_size}, but at least one request must run: use 1 or more.")
        if not 0 <= self.port < 2**16:
            raise ValueError(f"port is {self.port}: choose one from 0, which picks a free one, to {2**16 - 1}.")

    @property
    def name(self) -> str:
        """The name of the model in requests and responses."""
        return self.served_name or self.model
