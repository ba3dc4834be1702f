"""Which device a worker slot runs on, decided in the arbiter and put in force right after the fork.

A worker is shown its own device and no other, by ``CUDA_VISIBLE_DEVICES``, before anything in it has asked CUDA for the
list. A model that says plain ``"cuda"`` then lands on the right GPU, and a successor in the same slot on the same one
(triton#4581: all workers on GPU 0; BentoML#3972: CPU cannot be forced).

This module reads names and device files only. It must not load a driver or a framework: the arbiter calls it, and a
process that has asked the CUDA driver anything cannot be forked (see ``forksafety``).
"""

import re
from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass
from pathlib import Path

from mpserve.errors import ConfigurationError

VISIBLE = "CUDA_VISIBLE_DEVICES"

_GPU_NODE = re.compile(r"nvidia[0-9]+")
_ENTRY = re.compile(r"[0-9]+|(GPU|MIG)-.+")


@dataclass(frozen=True)
class Device:
    """One place of the plan.

    ``name`` is the operator's word for it, ``cpu`` or ``cuda:<index among the visible GPUs>``; the model hears the
    one that ``bind`` returns. ``token`` is what ``CUDA_VISIBLE_DEVICES`` becomes in the worker: an index or a UUID,
    "" for no GPU at all, and None to leave the variable as it is.
    """

    name: str
    token: str | None


# The operator said "cpu": hide every GPU, since code that asks torch.cuda.is_available() for itself would take one.
_CPU = Device("cpu", "")
# Nobody said "cpu", there is merely no GPU that we know of. A machine may have one without an NVIDIA device file (WSL,
# some Jetsons, ROCm), so nothing is hidden from a model that knows better.
_NO_GPU_FOUND = Device("cpu", None)


def visible_accelerators(environ: Mapping[str, str], dev: Path = Path("/dev")) -> list[str]:
    """Tokens of the GPUs that this process may use, in CUDA's order, without initialising anything.

    A set ``CUDA_VISIBLE_DEVICES`` is read as CUDA reads it (CUDA C++ Programming Guide, "CUDA Environment Variables"):
    the list ends before the first entry that names no device (``-1``, ``NoDevFiles``, an index past the last GPU), and a
    repeated entry leaves nothing. Otherwise the device files ``/dev/nvidia<N>`` are counted; their numbers are minor
    numbers and need not be CUDA's, which count from 0. Where no device file is found, the variable is believed.
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
    """The devices that worker slots are dealt, in order, from the ``devices`` setting.

    ``auto`` is every accelerator, or the CPU when there is none; otherwise a comma-separated list of ``cpu``, ``cuda``
    (every accelerator) and ``cuda:<index into accelerators>``. An entry given twice is dealt twice.

    Raises:
        ConfigurationError: an entry is not one of these, or names a GPU that is not visible.
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
            f"devices={devices!r} asks for {entry}, and {_sentence(accelerators)}. "
            f"GPUs without a /dev/nvidia<N> file are found once {VISIBLE} names them."
        )
    return chosen


def _sentence(accelerators: list[str]) -> str:
    if not accelerators:
        return "no GPU is visible to this process"
    seen = ", ".join(f"{gpu.name} ({VISIBLE}={gpu.token})" for gpu in _gpus(accelerators))
    return f"only these are visible to this process: {seen}"


def device_for(slot: int, plan: list[Device]) -> Device:
    """The device of a worker slot: the plan is dealt round and round, so a slot keeps its device over respawns."""
    return plan[slot % len(plan)]


def bind(device: Device, environ: MutableMapping[str, str]) -> str:
    """Show this process ``device`` and nothing else; the name that the model gets as ``self.device``.

    To be called in the worker before anything initialises CUDA, which reads the variable once. The one visible GPU is
    ``cuda:0`` there, whatever its name in the plan. ``CUDA_DEVICE_ORDER`` is left alone: an index token counts in the
    same order in the worker as it did for the operator who wrote it.
    """
    if device.token is not None:
        environ[VISIBLE] = device.token
    return "cuda:0" if device.token else "cpu"


def describe(plan: list[Device], workers: int) -> str:
    """The deal in words, for the log: "slot 0 on cuda:0, slot 1 on cuda:1", or "all on cpu"."""
    names = [device_for(slot, plan).name for slot in range(workers)]
    if len(set(names)) == 1:
        return f"all on {names[0]}"
    return ", ".join(f"slot {slot} on {name}" for slot, name in enumerate(names))
