"""Assigns a device to each worker slot: the arbiter makes the plan, and the worker applies it right after the fork.

A worker sees only its own device, by ``CUDA_VISIBLE_DEVICES``. So a model that says plain ``"cuda"`` runs on the right GPU, and
so does the successor in the slot (triton#4581: all workers on GPU 0; BentoML#3972: CPU cannot be forced).

This module reads only names and device files. It must not load a driver or a framework, since the arbiter calls it and CUDA
does not survive a fork (see ``forksafety``).
"""

import re
from collections.abc import Iterable, Mapping, MutableMapping
from dataclasses import dataclass
from pathlib import Path

from mpserve.errors import ConfigurationError

VISIBLE = "CUDA_VISIBLE_DEVICES"

_GPU_NODE = re.compile(r"nvidia[0-9]+")
_ENTRY = re.compile(r"[0-9]+|(GPU|MIG)-.+")


@dataclass(frozen=True)
class Device:
    """One entry of the plan."""

    name: str
    """``cpu`` or ``cuda:<index among the visible GPUs>``, for the operator. ``bind`` returns the name for the model."""
    token: str | None
    """The ``CUDA_VISIBLE_DEVICES`` of the worker: an index, a UUID, or "" for no GPU. None leaves the variable alone."""

    @property
    def number(self) -> int:
        """For ``Row.accelerator``: the index plus 1, or 0."""
        _, _, index = self.name.partition(":")
        return int(index) + 1 if index else 0


# With "cpu" every GPU is hidden, since a model that calls torch.cuda.is_available() would use one.
_CPU = Device("cpu", "")
# Without "cpu" nothing is hidden: a machine may have a GPU without an NVIDIA device file (WSL, some Jetsons, ROCm).
_NO_GPU_FOUND = Device("cpu", None)


def visible_accelerators(environ: Mapping[str, str], dev: Path = Path("/dev")) -> list[str]:
    """Tokens of the GPUs that this process may use, in CUDA's order, without initialising CUDA.

    ``CUDA_VISIBLE_DEVICES`` is read as CUDA reads it (CUDA C++ Programming Guide, "CUDA Environment Variables"): the list
    ends before the first entry that names no device (``-1``, ``NoDevFiles``, an index past the last GPU), and a repeated entry
    makes the list empty. Without the variable, the device files ``/dev/nvidia<N>`` are counted.
    """
    files = sum(1 for node in dev.glob("nvidia*") if _GPU_NODE.fullmatch(node.name))
    if VISIBLE not in environ:
        return [str(index) for index in range(files)]
    tokens: list[str] = []
    for entry in environ[VISIBLE].split(","):
        token = entry.strip()
        if not _ENTRY.fullmatch(token) or (files and token.isdecimal() and int(token) >= files):
            break
        if token in tokens:
            return []
        tokens.append(token)
    return tokens


def plan(devices: str, accelerators: list[str]) -> list[Device]:
    """The devices of the worker slots, in order, from the ``devices`` setting.

    ``auto`` means every accelerator, or the CPU if there is none. Otherwise ``devices`` is a comma-separated list of ``cpu``,
    ``cuda`` (every accelerator) and ``cuda:<index into accelerators>``, which may repeat entries.

    Raises:
        ConfigurationError: an entry is malformed, or names a GPU that is not visible.
    """
    if devices.strip() == "auto":
        return _gpus(accelerators) or [_NO_GPU_FOUND]
    return [device for entry in devices.split(",") for device in _entry(entry.strip(), devices, accelerators)]


def _gpus(accelerators: list[str]) -> list[Device]:
    return [Device(f"cuda:{index}", token) for index, token in enumerate(accelerators)]


def _entry(entry: str, devices: str, accelerators: list[str]) -> list[Device]:
    if entry == "cpu":
        return [_CPU]
    if not re.fullmatch(r"cuda(:[0-9]+)?", entry):
        raise ConfigurationError(
            f"devices={devices!r}: {entry!r} is no device. Expected auto, or a list of cpu, cuda and cuda:<index>."
        )
    _, _, index = entry.partition(":")
    gpus = _gpus(accelerators)
    chosen = gpus[int(index) : int(index) + 1] if index else gpus
    if not chosen:
        raise ConfigurationError(
            f"devices={devices!r} asks for {entry}, and {_describe_visible(accelerators)}. "
            f"GPUs without a /dev/nvidia<N> file are found once {VISIBLE} names them."
        )
    return chosen


def _describe_visible(accelerators: list[str]) -> str:
    if not accelerators:
        return "no GPU is visible to this process"
    visible = ", ".join(f"{gpu.name} ({VISIBLE}={gpu.token})" for gpu in _gpus(accelerators))
    return f"only these are visible to this process: {visible}"


def device_for(slot: int, plan: list[Device]) -> Device:
    """The device of a worker slot. The plan repeats, and a slot keeps its device over respawns."""
    return plan[slot % len(plan)]


def may_overlap(taken: Iterable[int], free: int, plan: list[Device]) -> bool:
    """Whether a worker in the slot ``free`` may exist for a while beside the workers in the slots ``taken``.

    It may if all workers have one device, or if its device is nobody's. Otherwise a worker with a device of its own must end
    before its successor begins, which then has its slot.
    """
    used = {device_for(slot, plan) for slot in taken}
    device = device_for(free, plan)
    return device not in used or used == {device}


def bind(device: Device, environ: MutableMapping[str, str]) -> str:
    """Make ``device`` the only visible device of this process. Return the name for the model's ``self.device``.

    Call this in the worker before CUDA is initialised, since CUDA reads the variable once. The only visible GPU is ``cuda:0``.
    """
    if device.token is not None:
        environ[VISIBLE] = device.token
    return "cuda:0" if device.token else "cpu"


def describe(plan: list[Device], workers: int) -> str:
    """The plan for the log, such as "slot 0 on cuda:0, slot 1 on cuda:1" or "all on cpu"."""
    names = [device_for(slot, plan).name for slot in range(workers)]
    if len(set(names)) == 1:
        return f"all on {names[0]}"
    return ", ".join(f"slot {slot} on {name}" for slot, name in enumerate(names))
