"""The Python API: ``ModelServer(workers=2).start([model])`` as in the kserve SDK, and an ASGI application."""

import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mpserve.compat import lending
from mpserve.compat.repository import Library, ModelRepository, named
from mpserve.config.command_line import KSERVE_FLAGS_IGNORED, parse
from mpserve.config.settings import Settings
from mpserve.errors import ConfigurationError, NothingToServe
from mpserve.prefork.arbiter.application import make_app, make_app_or_end, refuse_during_preload, serve
from mpserve.serving.models.model import Model
from mpserve.serving.models.predictor import PredictorConfig
from mpserve.serving.repository import model_directory
from mpserve.serving.repository.loader import ModelSource, from_objects, from_target
from mpserve.telemetry.logging import configure

if TYPE_CHECKING:
    from starlette.applications import Starlette

logger = logging.getLogger(__name__)

SDK_NAMES = {"grace_period": "graceful_timeout"}  # arguments of the SDK's ``ModelServer`` -> their names here


class ModelServer:
    """Serves models.

    Args:
        registered_models: models that are served too (SDK). The repository loads further models on request.
        predictor_config: options of a transformer (SDK).
        **options: options by name (``docs/reference/options.md``). A missing option comes from the script's command line, then
            from its ``MPSERVE_…`` variable, then from its default.

    Raises:
        ConfigurationError: an option is unknown or has an invalid value.
    """

    def __init__(
        self,
        *,
        registered_models: ModelRepository | None = None,
        predictor_config: PredictorConfig | None = None,
        **options: Any,
    ) -> None:
        if predictor_config is not None:
            options = {**predictor_config.options(), **options}
        ours = {SDK_NAMES.get(name, name): value for name, value in options.items() if name not in KSERVE_FLAGS_IGNORED}
        # Unknown words are the script's own.
        self.settings, ignored, _ = parse(sys.argv[1:], **ours)
        self._ignored = [*(options.keys() - ours.keys() - SDK_NAMES.keys()), *ignored]
        self.registered_models = registered_models
        self.models: list[Model] = []

    @property
    def workers(self) -> int:
        """Number of worker processes (SDK)."""
        return self.settings.workers

    def register_model(self, model: Model, name: str | None = None) -> None:
        """Add a model, which ``start`` serves (SDK). With another ``name``, add a shallow copy: load the model before."""
        self.models.append(named(model, name or model.name))

    def start(self, models: Sequence[Model | type[Model]] = ()) -> None:
        """Serve ``models`` until the server ends.

        Models may be loaded already, if that did not use CUDA. ``load()`` of the other models runs in each worker.

        Raises:
            ConfigurationError: an element of ``models`` is not a model, or two models have the same name.
            SystemExit: the server ended with an error. The reason is in the log.
        """
        refuse_during_preload()
        configure(self.settings)
        for name in self._ignored:
            logger.warning("%s has no effect: %s", name, KSERVE_FLAGS_IGNORED[name])
        library = None if self.registered_models is None else Library(self.registered_models)
        registered = [] if library is None else library.registered()
        try:
            objects = {id(model): model for model in [*self.models, *models]}  # SDK scripts repeat models
        except TypeError as error:
            raise ConfigurationError(
                f"expected a list of models, got {type(models).__name__}: start([model])"
            ) from error
        others = [model for model in objects.values() if all(model is not source.model for source in registered)]
        sources = registered + from_objects(others)

        def wrap(app: Any) -> Any:
            app.state.core.library = library
            return lending.wrap(app)

        serve(self.settings, sources, wrap)


def asgi_app(models: Sequence[Model | type[Model]], **options: Any) -> "Starlette":
    """Make an ASGI application that serves ``models``.

    Use it with ``gunicorn -c python:mpserve.gunicorn_config module:app``, or with any ASGI server: the lifespan loads the models.
    ``options`` override ``MPSERVE_…`` variables. Options of the HTTP server (port, workers, TLS) have no effect.

    Raises:
        ConfigurationError: an option or an element of ``models`` is invalid.
        ModelLoadError: a model could not be constructed or preloaded.
    """
    settings = Settings.from_environment(**options)
    sources = from_objects(list(models))
    app: Starlette = make_app(settings, sources)
    return app


def app_from_settings(settings: Settings) -> Any:
    """Make the ASGI application of ``target`` or ``model_dir``. On an error, log it and end the process."""
    return make_app_or_end(settings, find, lending.wrap)


def find(settings: Settings) -> list[ModelSource]:
    """Find the models of ``target`` or ``model_dir``. Raises ConfigurationError: there is no model, or no ``model_dir``."""
    lending.lend(before_sdk=settings.kserve_names)
    if settings.target is not None:
        if settings.model_dir is not None and not Path(settings.model_dir).is_dir():  # whose models can be loaded later
            raise ConfigurationError(f"model directory {settings.model_dir} does not exist (--model_dir)")
        return from_target(settings.target, settings.model_name, settings)
    if settings.model_dir is not None:
        return model_directory.find_all(settings)
    raise NothingToServe()
