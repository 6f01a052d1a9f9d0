"""`uniedit doctor`: prints versions, devices and extras, to be pasted into a bug report."""

from __future__ import annotations

import os
import platform
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, metadata, version

from uniedit_hf import __version__


PACKAGES = ("torch", "transformers", "diffusers", "datasets", "accelerate", "peft", "trl", "huggingface_hub")
HUB_SECONDS = 5
GB = 10**9


@dataclass
class DoctorOptions:
    model: str | None = field(
        default=None, metadata={"help": "a model; also prints which ways of training it fit on this machine"}
    )


def run(options: DoctorOptions) -> None:
    for name, value in facts():
        print(f"{name:<16}{value}")
    if options.model is not None:
        from uniedit_hf import UniEditConfig, UniEditTrainer

        print(f"\n{UniEditTrainer.plan(options.model, UniEditConfig(report_to='none'))}")


def facts() -> Iterator[tuple[str, str]]:
    """Names and values, one per line. No value contains a key or a user name."""
    yield "uniedit_hf", f"{__version__}, Python {platform.python_version()}, {platform.platform()}"
    yield "packages", ", ".join(f"{name} {installed_version(name) or 'missing'}" for name in PACKAGES)
    yield from devices()
    for extra, requirements in extras().items():
        missing = [name for name in requirements if installed_version(name) is None]
        advice = f'missing {", ".join(missing)}: pip install "uniedit_hf[{extra}]"'
        yield f"[{extra}]", advice if missing else "installed"
    yield "hub", hub_state()


def devices() -> Iterator[tuple[str, str]]:
    """Processor, memory, GPUs, and the device and dtype that small models are trained with here."""
    import psutil
    import torch
    from huggingface_hub import constants

    from uniedit_hf.arithmetic import available_cores, best_arithmetic

    capability = torch.backends.cpu.get_cpu_capability()
    memory = psutil.virtual_memory()
    yield "processor", f"{available_cores()} cores, {capability}, PyTorch uses {torch.get_num_threads()} threads"
    yield "memory", f"{memory.total / GB:.1f} GB, {memory.available / GB:.1f} GB available"
    for number in range(torch.cuda.device_count()):
        free, total = torch.cuda.mem_get_info(number)
        name = torch.cuda.get_device_name(number)
        yield f"GPU {number}", f"{name}, {total / GB:.1f} GB, {free / GB:.1f} GB free, CUDA {torch.version.cuda}"
    if torch.backends.mps.is_available():
        yield "GPU", "Apple GPU (mps)"
    elif torch.cuda.device_count() == 0:
        built = (
            f"this PyTorch is built for CUDA {torch.version.cuda}" if torch.version.cuda else "a CPU build of PyTorch"
        )
        yield "GPU", f"none found ({built})"
    yield "arithmetic", str(best_arithmetic())
    folder = next(path for path in _parents(constants.HF_HOME) if os.path.isdir(path))
    yield "disk", f"{shutil.disk_usage(folder).free / GB:.1f} GB free where HF_HOME keeps models and data"


def _parents(path: str) -> Iterator[str]:
    while True:
        yield path
        path = os.path.dirname(path)


def extras() -> dict[str, list[str]]:
    """Our extras and the packages each of them needs, as the installed package declares them."""
    from packaging.requirements import Requirement

    try:
        found = metadata("uniedit_hf")
    except PackageNotFoundError:  # a folder on the path, not an installed package
        return {}
    needed: dict[str, list[str]] = {name: [] for name in found.get_all("Provides-Extra") or []}
    for text in found.get_all("Requires-Dist") or []:
        requirement = Requirement(text)
        for extra, names in needed.items():
            if requirement.marker and not requirement.marker.evaluate({"extra": ""}):
                if requirement.marker.evaluate({"extra": extra}):
                    names.append(requirement.name)
    return needed


def installed_version(name: str) -> str | None:
    """The version of an installed package."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def hub_state() -> str:
    """Whether the Hub answers and whether a user is logged in."""
    from huggingface_hub import constants, get_token
    from huggingface_hub.errors import HTTPError
    from huggingface_hub.utils import get_session

    login = "logged in" if get_token() else "not logged in"
    if constants.is_offline_mode():
        return f"HF_HUB_OFFLINE is set, so only the cache is used; {login}"
    try:
        get_session().head(constants.ENDPOINT, timeout=HUB_SECONDS)
    except (HTTPError, OSError) as error:
        return f"{constants.ENDPOINT} cannot be reached ({type(error).__name__}); {login}"
    return f"{constants.ENDPOINT} answers; {login}"
