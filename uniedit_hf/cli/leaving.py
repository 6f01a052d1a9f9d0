"""The end of a command that ran on several processes."""

from __future__ import annotations

import os
import sys


def leave_processes(code: int = 0) -> None:
    """Closes the process group in the first process, and ends the others, whose work is done, with this exit code.

    The others end without the interpreter's teardown: while the first process still saves, threads of the backend can
    abort them there ("terminate called without an active exception"), and the launcher then kills the first one, too.
    """
    from accelerate import PartialState

    state = PartialState()
    if not state.is_main_process:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    state.destroy_process_group()
