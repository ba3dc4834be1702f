"""A model server of scikit-learn's kind, in the manner of KServe's sklearnserver."""

from pathlib import Path

import joblib
from kserve import Model
from kserve.errors import InferenceError, ModelMissingError
from kserve.protocol.infer_type import InferRequest, InferResponse
from kserve.utils.utils import get_predict_input, get_predict_response
from kserve_storage import Storage


class TreeModel(Model):
    def __init__(self, name: str, model_dir: str):
        super().__init__(name)
        self.model_dir = model_dir
        self.ready = False

    def load(self) -> bool:
        folder = Path(Storage.download(self.model_dir))
        files = sorted(folder.glob("*.joblib"))
        if not files:
            raise ModelMissingError(folder)
        self._model = joblib.load(files[0])
        self.ready = True
        return self.ready

    def predict(self, payload: dict | InferRequest, headers: dict | None = None) -> dict | InferResponse:
        try:
            return get_predict_response(payload, self._model.predict(get_predict_input(payload)), self.name)
        except Exception as error:
            raise InferenceError(str(error)) from error
