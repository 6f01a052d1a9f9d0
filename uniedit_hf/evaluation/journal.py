"""An append-only file of JSON lines with keys, so that no paid call is repeated."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Mapping
from pathlib import Path

from uniedit_hf.files import disk_errors_name


class Journal:
    """Entries by key; a later entry replaces an earlier one. A line that a killed process left half written is
    removed.

    Raises:
        ValueError: If a line before the last is damaged.
    """

    def __init__(self, path: Path):
        self.path, self.entries, self._by_settings, self._lock = path, {}, {}, threading.Lock()
        path.parent.mkdir(parents=True, exist_ok=True)
        whole = path.read_bytes() if path.exists() else b""
        complete = whole[: whole.rfind(b"\n") + 1]
        for number, line in enumerate(complete.splitlines(), 1):
            try:
                entry = json.loads(line)
                self._keep(entry)
            except (ValueError, KeyError, TypeError) as error:
                raise ValueError(f"Line {number} of {path} is damaged: remove that line to continue.") from error
        self._file = open(path, "ab")
        if len(complete) < len(whole):
            os.truncate(path, len(complete))

    def append(self, entry: dict) -> None:
        """Writes an entry, which must have a `key`, before it returns. Thread-safe."""
        line = json.dumps(entry, ensure_ascii=False).encode(errors="replace") + b"\n"
        with self._lock, disk_errors_name(self.path):
            self._file.write(line)
            self._file.flush()
            self._keep(entry)

    def get(self, key: str, settings: Mapping) -> dict:
        """The latest entry of a key with these `settings`, or `{}`; other settings make another entry."""
        return self._by_settings.get((key, _as_text(settings)), {})

    def _keep(self, entry: dict) -> None:
        self.entries[entry["key"]] = entry
        self._by_settings[entry["key"], _as_text(entry.get("settings"))] = entry

    def close(self) -> None:
        self._file.close()


def _as_text(settings: Mapping | None) -> str:
    return json.dumps(settings, sort_keys=True)
