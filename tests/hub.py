"""A Hugging Face Hub on loopback, for tests: what a test sees of it. `hub_server.py` is the server.

It runs in a process of its own, because clients read their settings when they are imported:

    with running_hub(folder) as hub:
        subprocess.run([...], env={**os.environ, **hub.environment})
        hub.inject(Fault("PUT", "/lfs/", after=3, action="stall"))
        hub.log()

Large files travel by the LFS protocol; `HF_HUB_DISABLE_XET=1`, part of `environment`, keeps clients from Xet.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any


USER, ORGANISATION, TOKEN = "tester", "uniedit-hf", "hf_test"
SERVER = Path(__file__).with_name("hub_server.py")


@dataclass
class Fault:
    """Something that goes wrong.

    Args:
        method: Of the requests that are meant.
        path: A regular expression that their paths hold.
        action: `status` answers with an error, `stall` reads half of what is sent and says nothing more.
        status: The error.
        after: How many such requests go well before.
        times: How many fail.
    """

    method: str
    path: str
    action: str = "status"
    status: int = 503
    after: int = 0
    times: int = 1

    def strikes(self, method: str, path: str) -> bool:
        """Whether this request fails; counts it."""
        if method != self.method or not re.search(self.path, path) or self.times == 0:
            return False
        if self.after:
            self.after -= 1
            return False
        self.times -= 1
        return True


@dataclass(frozen=True)
class RunningHub:
    """A Hub in another process, as a test sees it."""

    address: str

    @property
    def environment(self) -> dict[str, str]:
        """What a client's environment needs, before it imports anything."""
        return {
            "HF_ENDPOINT": self.address,
            "HF_TOKEN": TOKEN,
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_OFFLINE": "0",
            "HF_HUB_DISABLE_IMPLICIT_TOKEN": "0",
        }

    def log(self) -> list[dict[str, Any]]:
        """Every request since the last `clear`: method, path, status, bytes received and sent."""
        return self._ask("GET", "/control/log")

    def inject(self, fault: Fault) -> None:
        """Adds a fault."""
        self._ask("POST", "/control/faults", asdict(fault))

    def clear(self) -> None:
        """Forgets faults and the log, and lets go of what was stalled."""
        self._ask("DELETE", "/control/faults")

    def _ask(self, method: str, path: str, content: Any = None) -> Any:
        data = None if content is None else json.dumps(content).encode()
        with urllib.request.urlopen(
            urllib.request.Request(self.address + path, data, method=method), timeout=30
        ) as got:
            return json.loads(got.read())


@contextmanager
def running_hub(folder: Path) -> Iterator[RunningHub]:
    """A Hub in a process of its own, with its files in `folder`, until the block ends."""
    command = [sys.executable, str(SERVER), "--folder", str(folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield RunningHub(process.stdout.readline().strip())
        finally:
            process.kill()
