"""Administers a server of the models `echo` and `rows` as a user of tritonclient does, over each of its four clients.

python administer_with_tritonclient.py HTTP_ADDRESS GRPC_ADDRESS
"""

import asyncio
import inspect
import sys
from types import ModuleType
from typing import Any

import numpy as np
import tritonclient.grpc as triton_grpc
import tritonclient.grpc.aio as triton_grpc_aio
import tritonclient.http as triton_http
import tritonclient.http.aio as triton_http_aio
from tritonclient.utils import InferenceServerException

OVER_GRPC = (triton_grpc, triton_grpc_aio)


class Asked:
    """A client of any of the four, whose answers are documents of plain values."""

    def __init__(self, library: ModuleType, client: Any) -> None:
        self.library = library
        self.client = client

    async def __call__(self, method: str, *args: Any, **options: Any) -> Any:
        function = getattr(self.client, method)
        if "as_json" in inspect.signature(function).parameters:
            options["as_json"] = True
        result = function(*args, **options)
        return await result if inspect.isawaitable(result) else result

    async def refused(self, words: str, method: str, *args: Any, **options: Any) -> None:
        told = ""
        try:
            await self(method, *args, **options)
        except InferenceServerException as error:
            told = error.message()
        assert words in told, f"expected a refusal with {words!r}, got {told!r}"

    async def infer(self, rows: int) -> None:
        tensor = self.library.InferInput("x", [rows], "FP32")
        tensor.set_data_from_numpy(np.zeros(rows, np.float32))
        await self("infer", "echo", [tensor])

    async def infer_fails(self) -> None:
        tensor = self.library.InferInput("x", [1], "FP32")
        tensor.set_data_from_numpy(np.zeros(1, np.float32))
        wanted = self.library.InferRequestedOutput("nope")
        await self.refused("Unexpected inference output 'nope'", "infer", "echo", [tensor], outputs=[wanted])


async def administer(asked: Asked) -> None:
    await metadata(asked)
    await repository(asked)
    await statistics(asked)
    await configuration(asked)
    await logging(asked)
    await tracing(asked)


async def metadata(asked: Asked) -> None:
    told = await asked("get_server_metadata")
    for extension in ("model_repository", "statistics", "model_configuration", "logging"):
        assert extension in told["extensions"], told


async def repository(asked: Asked) -> None:
    async def states() -> dict[str, str]:
        told = await asked("get_model_repository_index")
        return {entry["name"]: entry["state"] for entry in (told["models"] if isinstance(told, dict) else told)}

    assert (await states())["rows"] == "READY"
    await asked("unload_model", "rows", unload_dependents=True)
    assert (await states())["rows"] == "UNAVAILABLE"
    assert not await asked("is_model_ready", "rows")
    await asked("load_model", "rows")
    assert (await states())["rows"] == "READY"
    await asked.refused("Model with name nope does not exist", "load_model", "nope")
    await asked.refused("the parameter 'config' is not supported", "load_model", "rows", config="{}")


async def statistics(asked: Asked) -> None:
    async def counts() -> tuple[int, int, int]:
        [stats] = (await asked("get_inference_statistics", "echo", "1"))["model_stats"]
        durations = stats["inference_stats"]
        success, fail = (int(durations.get(name, {}).get("count", 0)) for name in ("success", "fail"))
        assert int(durations.get("compute_infer", {}).get("count", 0)) == success
        return success, fail, int(stats.get("execution_count", 0))

    success, fail, executions = await counts()
    for number in range(1, 9):
        await asked.infer(3)
        assert await counts() == (success + number, fail, executions + number)
    await asked.infer_fails()
    assert await counts() == (success + 8, fail + 1, executions + 8)
    everything = (await asked("get_inference_statistics"))["model_stats"]
    assert {"echo", "rows"} <= {stats["name"] for stats in everything}
    await asked.refused("Model with name nope does not exist", "get_inference_statistics", "nope")


async def configuration(asked: Asked) -> None:
    told = await asked("get_model_config", "echo")
    config = told["config"] if asked.library in OVER_GRPC else told
    assert (config["name"], config["backend"], config.get("max_batch_size", 0)) == ("echo", "python", 0)


async def logging(asked: Asked) -> None:
    def plain(told: Any) -> Any:
        if asked.library not in OVER_GRPC:
            return told
        return {name: next(iter(value.values())) for name, value in told["settings"].items()}

    before = plain(await asked("get_log_settings"))
    assert before["log_info"] is True
    changed = plain(await asked("update_log_settings", settings={"log_verbose_level": 1}))
    assert changed == {**before, "log_verbose_level": 1}
    assert plain(await asked("get_log_settings")) == changed
    assert plain(await asked("update_log_settings", settings={"log_verbose_level": 0})) == before
    await asked.refused("'log_file' cannot be set", "update_log_settings", settings={"log_file": "/tmp/none"})


async def tracing(asked: Asked) -> None:
    """The server traces nothing but what clients ask for."""

    def plain(told: Any) -> Any:
        if asked.library not in OVER_GRPC:
            return told
        words = {name: setting["value"] for name, setting in told["settings"].items()}
        return {name: value if name == "trace_level" else value[0] for name, value in words.items()}

    for model in (None, "echo"):
        before = plain(await asked("get_trace_settings", model_name=model))
        assert (before["trace_level"], before["trace_mode"]) == (["OFF"], "opentelemetry")
        settings = {"trace_level": ["TIMESTAMPS"], "trace_rate": "7", "trace_count": "9"}
        changed = plain(await asked("update_trace_settings", model_name=model, settings=settings))
        assert changed == {**before, **settings}
        assert plain(await asked("get_trace_settings", model_name=model)) == changed
        cleared = dict.fromkeys(settings)
        assert plain(await asked("update_trace_settings", model_name=model, settings=cleared)) == before
        await asked.refused(
            "no tensors", "update_trace_settings", model_name=model, settings={"trace_level": ["TENSORS"]}
        )


async def main(http_address: str, grpc_address: str) -> None:
    for library, address in ((triton_http, http_address), (triton_grpc, grpc_address)):
        with library.InferenceServerClient(address) as client:
            await administer(Asked(library, client))
    for library, address in ((triton_http_aio, http_address), (triton_grpc_aio, grpc_address)):
        async with library.InferenceServerClient(address) as client:
            await administer(Asked(library, client))


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
    print("all answered")
