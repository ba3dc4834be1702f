"""Recognises the errors after which a process cannot use its accelerator any more, and those that say that its memory is full.

A CUDA error like a failed assert on the device stays: every later call of the process fails with it ("sticky", CUDA Runtime API,
"Error Handling"). Only a new process can use the device again. No framework is imported here. The text of an error may quote a
client, and a client must not be able to end a worker by words. So the text counts only if the class of the error belongs to a
framework, or if the text begins as the text of a framework does.
"""

import logging
import re
import sys
import traceback
from collections.abc import Callable, Iterator

from mpserve.errors import AcceleratorFailed, AcceleratorOutOfMemory, MPServeError, text_of

logger = logging.getLogger(__name__)

FRAMEWORKS = frozenset(
    {"torch", "cupy", "cupy_backends", "jax", "jaxlib", "numba", "onnxruntime", "pycuda", "tensorflow", "triton"}
)
"""Packages whose errors are believed, whatever their text begins with."""

BEGINNING = re.compile(
    r"(The following operation failed in the TorchScript interpreter\.[\s\S]*^RuntimeError: )?"
    r"((CUDA|HIP)( driver)? error: |(CUDA|HIP) out of memory|cuDNN error: |Triton Error \[CUDA\]: )",
    re.MULTILINE,
)
"""The text of a plain RuntimeError of torch or Triton begins so."""

# torch adds to each of its CUDA errors a hint that has the words "device-side assertions".
LOST = re.compile(
    "device-side assert triggered|an illegal memory access was encountered|an illegal instruction was encountered"
    "|misaligned address|invalid program counter|hardware stack error|unspecified launch failure"
    "|launch timed out and was terminated|operation not supported on global/shared address space"
    "|uncorrectable (ECC|NVLink) error|CUDA error: unknown error"
    "|(CUBLAS|CUDNN)_STATUS_(NOT_INITIALIZED|EXECUTION_FAILED)|CUBLAS_STATUS_INTERNAL_ERROR"
    "|CUDA_ERROR_(ASSERT|ILLEGAL_ADDRESS|ILLEGAL_INSTRUCTION|MISALIGNED_ADDRESS|INVALID_PC|INVALID_ADDRESS_SPACE"
    "|HARDWARE_STACK_ERROR|LAUNCH_FAILED|LAUNCH_TIMEOUT|ECC_UNCORRECTABLE|NVLINK_UNCORRECTABLE|UNKNOWN)"
    "|cudaError(Assert|IllegalAddress|IllegalInstruction|MisalignedAddress|InvalidPc|InvalidAddressSpace"
    "|HardwareStackError|LaunchFailure|LaunchTimeout|ECCUncorrectable|NvlinkUncorrectable|Unknown)"
)
OUT_OF_MEMORY = re.compile(
    r"\bout of memory\b|(CUBLAS|CUDNN)_STATUS_ALLOC_FAILED|CUDA_ERROR_OUT_OF_MEMORY|cudaErrorMemoryAllocation"
    "|Failed to allocate memory for requested buffer",
    re.IGNORECASE,
)


def accelerator_fault(error: BaseException, model: str) -> AcceleratorFailed | None:
    """The error for the client if ``error``, or an error behind it, is one of the accelerator; else None.

    A model may answer a lack of memory in its own words, by an MPServeError. A lost accelerator is lost in any words.
    """
    texts = [text_of(each) for each in chain(error) if _is_of_framework(each)]
    fault: AcceleratorFailed
    if any(map(LOST.search, texts)):
        fault = AcceleratorFailed(f"The accelerator of model {model} failed, and this worker cannot use it any more.")
    elif any(map(OUT_OF_MEMORY.search, texts)) and not isinstance(error, MPServeError):
        fault = AcceleratorOutOfMemory(f"The accelerator has too little memory left for this request to model {model}.")
    else:
        return None
    fault.__cause__ = error
    return fault


def chain(error: BaseException) -> Iterator[BaseException]:
    """The error, and the errors in whose handling it was raised."""
    todo, seen = [error], set[int]()
    while todo:
        found = todo.pop()
        if id(found) not in seen:
            seen.add(id(found))
            yield found
            todo += filter(None, (found.__cause__, found.__context__))


def _is_of_framework(error: BaseException) -> bool:
    if type(error) is RuntimeError:
        return BEGINNING.match(text_of(error)) is not None
    return type(error).__module__.partition(".")[0] in FRAMEWORKS


def free_memory(error: BaseException) -> None:
    """Give back the memory that the failed call holds, and the memory that frameworks keep for later calls."""
    for each in chain(error):
        traceback.clear_frames(each.__traceback__)  # else the tensors of the call live as long as the error
    empty_caches()


def empty_caches() -> None:
    for package, empty in CACHES.items():
        if package in sys.modules:
            try:
                empty(sys.modules[package])
            except Exception:
                logger.exception("the memory that %s keeps could not be given back", package)


CACHES: dict[str, Callable[..., object]] = {
    "torch": lambda torch: torch.cuda.empty_cache(),
    "cupy": lambda cupy: cupy.get_default_memory_pool().free_all_blocks(),
}
