"""Has every function of `multiprocessing` write down who calls it, in this process and in those that are forked from it.

The names of what is watched go to the file `watched`, and calls with their stack to the file `called`, which stays absent
when there is none.
"""

import multiprocessing.context
import multiprocessing.process
import multiprocessing.queues
import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

WATCHED = {
    multiprocessing.context.BaseContext: None,
    multiprocessing.context.DefaultContext: None,
    multiprocessing.process.BaseProcess: ["start", "run", "join"],
    multiprocessing.queues.Queue: ["put", "get"],
}
# logging asks for it in every record, to name the process.
HARMLESS = ("current_process",)


def watch() -> None:
    modules = [sys.modules[name] for name in ("multiprocessing", "torch.multiprocessing") if name in sys.modules]
    places = {**WATCHED, **{module: multiprocessing.__all__ for module in modules}}
    watched = [
        (place, name)
        for place, names in places.items()
        for name in names or [name for name in vars(place) if not name.startswith("_")]
        if name not in HARMLESS and callable(getattr(place, name)) and not isinstance(getattr(place, name), type)
    ]
    for place, name in watched:
        setattr(place, name, _recording(f"{place.__name__}.{name}", getattr(place, name)))
    Path("watched").write_text("\n".join(f"{place.__name__}.{name}" for place, name in watched))


def _recording(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    def record(*args: Any, **kwargs: Any) -> Any:
        caller = sys._getframe(1)
        own = caller.f_globals["__name__"].startswith("multiprocessing")
        # uvicorn asks for a context when it is imported, and starts nothing with it.
        if not own and caller.f_code.co_name != "<module>":
            with Path("called").open("a") as file:
                file.write(f"{name} in {os.getpid()}\n")
                traceback.print_stack(caller, file=file)
        return function(*args, **kwargs)

    return record
