"""Which errors end the use of an accelerator, which say that its memory is full, and which say neither."""

import sys
from types import SimpleNamespace
from typing import Any

import pytest

from mpserve.errors import AcceleratorFailed, AcceleratorOutOfMemory, InferenceError, InvalidInput
from mpserve.serving.models.accelerator import accelerator_fault, free_memory
from tests.cases import each

torch = pytest.importorskip("torch")

# What torch 2.13 adds to the first line of each of its CUDA errors.
HINT = (
    "\nCUDA kernel errors might be asynchronously reported at some other API call, so the stacktrace below might be incorrect."
    "\nFor debugging consider passing CUDA_LAUNCH_BLOCKING=1\nDevice-side assertion tracking was not enabled by user."
    "\nCompile with `TORCH_USE_CUDA_DSA` to enable device-side assertions.\n"
)


def of(module: str, name: str, base: type[Exception] = Exception) -> type[Exception]:
    """A class of error with the name that a framework gives it. The frameworks are not installed here."""
    return type(name, (base,), {"__module__": module})


CUPY = of("cupy_backends.cuda.api.runtime", "CUDARuntimeError", RuntimeError)
CUPY_MEMORY = of("cupy.cuda.memory", "OutOfMemoryError", MemoryError)
JAX = of("jaxlib.xla_extension", "XlaRuntimeError", RuntimeError)
ORT = of("onnxruntime.capi.onnxruntime_pybind11_state", "Fail")
SCRIPTED = (
    "The following operation failed in the TorchScript interpreter.\nTraceback of TorchScript (most recent call last):\n"
    "    return torch.embedding(weight, x)\n           ~~~~ <--- HERE\nRuntimeError: CUDA error: device-side assert triggered"
)

LOST: list[Exception] = [
    *(torch.AcceleratorError(f"CUDA error: {what}{HINT}") for what in (
        "device-side assert triggered", "an illegal memory access was encountered", "unspecified launch failure",
        "uncorrectable ECC error encountered", "misaligned address", "unknown error",
    )),
    RuntimeError(f"CUDA error: device-side assert triggered{HINT}"),
    RuntimeError("CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`"),
    RuntimeError("cuDNN error: CUDNN_STATUS_NOT_INITIALIZED"),
    RuntimeError("HIP error: an illegal memory access was encountered"),
    RuntimeError("Triton Error [CUDA]: an illegal memory access was encountered"),
    RuntimeError(SCRIPTED),
    CUPY("cudaErrorIllegalAddress: an illegal memory access was encountered"),
    JAX("INTERNAL: Failed to launch CUDA kernel: CUDA_ERROR_ILLEGAL_ADDRESS: an illegal memory access was encountered"),
    ORT("[ONNXRuntimeError] : 1 : FAIL : Non-zero status code returned while running Gather node. CUDA failure 700: an"
        " illegal memory access was encountered ; GPU=0"),
    ORT("[ONNXRuntimeError] : 1 : FAIL : CUBLAS failure 1: CUBLAS_STATUS_NOT_INITIALIZED ; GPU=0 ; expr=cublasCreate"),
]  # fmt: skip

FULL: list[Exception] = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB. GPU 0 has a total capacity of 79.15 GiB"),
    torch.AcceleratorError(f"CUDA error: out of memory{HINT}"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    RuntimeError("HIP out of memory. Tried to allocate 20.00 GiB"),
    CUPY_MEMORY("Out of memory allocating 8,000,000,000 bytes (allocated so far: 0 bytes)."),
    JAX("RESOURCE_EXHAUSTED: Out of memory while trying to allocate 34359738368 bytes."),
    ORT(
        "[ONNXRuntimeError] : 6 : RUNTIME_EXCEPTION : Failed to allocate memory for requested buffer of size 8589934592"
    ),
]

NEITHER: list[Exception] = [
    torch.AcceleratorError(f"CUDA error: invalid argument{HINT}"),
    RuntimeError(f"CUDA error: no kernel image is available for execution on the device{HINT}"),
    RuntimeError("mat1 and mat2 shapes cannot be multiplied (1x3 and 4x5)"),
    ORT("[ONNXRuntimeError] : 2 : INVALID_ARGUMENT : Got invalid dimensions for input: x"),
    # Words of a client, which a model quotes.
    ValueError("unknown label 'CUDA error: device-side assert triggered'"),
    RuntimeError("cannot read 'CUDA error: device-side assert triggered'"),
    RuntimeError("cannot read '\nRuntimeError: CUDA error: device-side assert triggered'"),
    InvalidInput("CUDA error: device-side assert triggered"),
    MemoryError("out of memory"),
]


@each("error, fault", [
    *((error, AcceleratorFailed) for error in LOST), *((error, AcceleratorOutOfMemory) for error in FULL),
    *((error, type(None)) for error in NEITHER),
])  # fmt: skip
def test_an_error_of_a_framework_is_recognised_and_words_of_a_client_are_not(error: Exception, fault: type) -> None:
    assert type(accelerator_fault(error, "m")) is fault


@each("own", [InferenceError, InvalidInput, ValueError])
def test_a_model_cannot_hide_a_lost_accelerator_but_may_answer_a_lack_of_memory_itself(own: type[Exception]) -> None:
    def predict(error: Exception) -> None:
        try:
            raise error
        except Exception:
            raise own("in words of its own") from None

    def told(error: Exception) -> Any:
        with pytest.raises(own) as raised:
            predict(error)
        return type(accelerator_fault(raised.value, "m"))

    assert told(LOST[0]) is AcceleratorFailed
    assert told(FULL[0]) is (AcceleratorOutOfMemory if own is ValueError else type(None))


class Pool:
    freed = 0

    def free_all_blocks(self) -> None:
        self.freed += 1


def test_freeing_memory_lets_go_of_the_failed_call_and_empties_the_pool_of_the_framework(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pool = Pool()
    monkeypatch.setitem(sys.modules, "cupy", SimpleNamespace(get_default_memory_pool=lambda: pool))
    gone: list[bool] = []

    class Held:
        def __del__(self) -> None:
            gone.append(True)

    def predict() -> None:
        held = Held()
        raise FULL[0] from (ValueError(str(held)))

    try:
        predict()
    except Exception as error:
        assert not gone
        free_memory(error)
    assert gone == [True]
    assert pool.freed == 1
