from .model import TreeModel
from .repository import TreeRepository

__all__ = ["TreeModel", "TreeRepository"]
