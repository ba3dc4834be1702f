"""The ways in from Python: ``ModelServer(workers=2).start([model])`` as in the kserve SDK, and an ASGI application.

Options and models are put together here. It must not know how workers are made, nor how a request is answered.
"""

import copy
import logging
import sys
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from mpserve.compat import lending
from mpserve.errors import ConfigurationError
from mpserve.logging import configure
from mpserve.prefork.application import make_app, make_app_or_end, serve
from mpserve.serving import shelf
from mpserve.serving.loader import ModelSource, from_objects, from_target
from mpserve.serving.model import Model
from mpserve.serving.predictor import PredictorConfig
from mpserve.settings import KSERVE_FLAGS_IGNORED, Settings, parse

if TYPE_CHECKING:
    from starlette.applications import Starlette

logger = logging.getLogger(__name__)

SDK_NAMES = {"grace_period": "graceful_timeout"}
"""Arguments of the SDK's ``ModelServer`` that have another name here."""

SDK_IGNORED = {**KSERVE_FLAGS_IGNORED, "registered_models": "hand the models to start()"}


class ModelServer:
    """Serves models; the constructor takes any option by its name (``docs/options.md``), and a ``predictor_config`` (SDK).

    An option that is not given comes from the script's command line, then from its ``MPSERVE_…`` variable, then from
    its default, as the SDK takes it (kserve/model_server.py reads ``sys.argv``, though at import).

    Raises:
        ConfigurationError: an option is unknown or has no valid value.
    """

    def __init__(self, **options: Any) -> None:
        config: PredictorConfig | None = options.pop("predictor_config", None)
        if config is not None:
            options = {**config.options(), **options}
        ours = {SDK_NAMES.get(name, name): value for name, value in options.items() if name not in SDK_IGNORED}
        # Words that are not known are the script's own.
        self.settings, ignored, _ = parse(sys.argv[1:], **ours)
        self._ignored = [*(options.keys() - ours.keys() - SDK_NAMES.keys()), *ignored]
        self.models: list[Model] = []

    def register_model(self, model: Model, name: str | None = None) -> None:
        """Add a model to those that ``start`` will serve; under a second name, if ``name`` is another than its own (SDK).

        What is served under the second name is a shallow copy. It shares what the model holds by now, so load first, and
        has a thread of its own.
        """
        if name is not None and name != model.name:
            model = copy.copy(model)
            model.name = name
        self.models.append(model)

    def start(self, models: Sequence[Model | type[Model]] = ()) -> None:
        """Serve ``models`` until told to end; returns when the server has ended well.

        The models may be loaded already, if that did not touch CUDA; ``load()`` of the others runs in each worker.

        Raises:
            ConfigurationError: something in the list is no model, or two have one name.
            SystemExit: the server ended with an error; the reason is in the log.
        """
        configure(self.settings)
        for name in self._ignored:
            logger.warning("%s has no effect: %s", name, SDK_IGNORED[name])
        try:
            unique = {id(model): model for model in [*self.models, *models]}  # SDK scripts give some twice
            sources = from_objects(list(unique.values()))
        except TypeError as error:
            raise ConfigurationError(f"expected a list of models, got {models!r}: start([model])") from error
        serve(self.settings, lambda: sources, lending.around)


def asgi_app(models: Sequence[Model | type[Model]], **options: Any) -> "Starlette":
    """An ASGI application that serves ``models``.

    For ``gunicorn -c python:mpserve.gunicorn_config module:app``, or any ASGI server: its lifespan loads the models.
    Options come from ``MPSERVE_…`` variables and from ``options``, which win. What is the HTTP server's own (port,
    workers, TLS) is that server's to configure.

    Raises:
        ConfigurationError: an option, or something in the list, is not valid.
        ModelLoadError: a model could not be constructed or preloaded.
    """
    settings = Settings.from_environment(**options)
    sources = from_objects(list(models))
    app: Starlette = make_app(settings, lambda: sources)
    return app


def app_from_settings(settings: Settings) -> Any:
    """The ASGI application over what ``target`` or ``model_dir`` names; without one the process ends, in words."""
    return make_app_or_end(settings, partial(find, settings), lending.around)


def find(settings: Settings) -> list[ModelSource]:
    """The models that ``target`` or ``model_dir`` names; their code may import them from the kserve SDK.

    Raises:
        ConfigurationError: neither is given, or there is no model there.
    """
    lending.lend(instead=settings.kserve_names)
    if settings.target is not None:
        return from_target(settings.target, settings.model_name)
    if settings.model_dir is not None:
        return shelf.find_all(settings)
    raise ConfigurationError("nothing to serve: name a target (mpserve serve model.py:Class) or a --model_dir")
