"""The ways in from Python: ``ModelServer(workers=2).start([model])`` as in the kserve SDK, and an ASGI application.

Options and models are put together here. It must not know how workers are made, nor how a request is answered.
"""

import logging
import sys
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from mpserve.compat import lending
from mpserve.compat.repository import Library, ModelRepository, named
from mpserve.config.settings import KSERVE_FLAGS_IGNORED, Settings, parse
from mpserve.errors import ConfigurationError
from mpserve.prefork.arbiter.application import make_app, make_app_or_end, serve
from mpserve.serving.models.model import Model
from mpserve.serving.models.predictor import PredictorConfig
from mpserve.serving.repository import model_directory as shelf
from mpserve.serving.repository.loader import ModelSource, from_objects, from_target
from mpserve.telemetry.logging import configure

if TYPE_CHECKING:
    from starlette.applications import Starlette

logger = logging.getLogger(__name__)

SDK_NAMES = {"grace_period": "graceful_timeout"}
"""Arguments of the SDK's ``ModelServer`` that have another name here."""


class ModelServer:
    """Serves models; the constructor takes any option by its name (``docs/options.md``), and a ``predictor_config`` (SDK).

    ``registered_models`` (SDK) are served too, and the repository is asked for further ones when they are to be loaded. An
    option that is not given comes from the script's command line, then from its ``MPSERVE_…`` variable, then from
    its default, as the SDK takes it (kserve/model_server.py reads ``sys.argv``, though at import).

    Raises:
        ConfigurationError: an option is unknown or has no valid value.
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
        # Words that are not known are the script's own.
        self.settings, ignored, _ = parse(sys.argv[1:], **ours)
        self._ignored = [*(options.keys() - ours.keys() - SDK_NAMES.keys()), *ignored]
        self.registered_models = registered_models
        self.models: list[Model] = []

    @property
    def workers(self) -> int:
        """How many worker processes there will be (SDK)."""
        return self.settings.workers

    def register_model(self, model: Model, name: str | None = None) -> None:
        """Add a model to those that ``start`` will serve; under a second name, if ``name`` is another than its own (SDK).

        What is served under the second name is a shallow copy, with a thread of its own: load the model before.
        """
        self.models.append(named(model, name or model.name))

    def start(self, models: Sequence[Model | type[Model]] = ()) -> None:
        """Serve ``models`` until told to end; returns when the server has ended well.

        The models may be loaded already, if that did not touch CUDA; ``load()`` of the others runs in each worker.

        Raises:
            ConfigurationError: something in the list is no model, or two have one name.
            SystemExit: the server ended with an error; the reason is in the log.
        """
        configure(self.settings)
        for name in self._ignored:
            logger.warning("%s has no effect: %s", name, KSERVE_FLAGS_IGNORED[name])
        library = None if self.registered_models is None else Library(self.registered_models)
        found = [] if library is None else library.registered()
        try:
            given = {id(model): model for model in [*self.models, *models]}  # SDK scripts give some twice
        except TypeError as error:
            raise ConfigurationError(f"expected a list of models, got {models!r}: start([model])") from error
        sources = found + from_objects([model for model in given.values() if all(model is not s.model for s in found)])

        def wrap(app: Any) -> Any:
            app.state.core.library = library
            return lending.wrap(app)

        serve(self.settings, lambda: sources, wrap)


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
    return make_app_or_end(settings, partial(find, settings), lending.wrap)


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
