"""A model without a server, for `mpserve serve target.py:Upper`; the application is added to at import."""

from fastapi.middleware.cors import CORSMiddleware
from kserve import Model
from kserve.model_server import app

app.add_middleware(CORSMiddleware, allow_origins=["*"])


class Upper(Model):
    def __init__(self, name: str = "upper"):
        super().__init__(name)

    async def predict(self, payload, headers=None):
        return {"predictions": [text.upper() for text in payload["instances"]]}
