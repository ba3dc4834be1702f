"""A torch whose way to CUDA is another is refused in words. ``test_forksafety`` shows the guard on the installed torch."""

import os
from pathlib import Path
from types import ModuleType

import pytest

from mpserve.errors import ConfigurationError
from mpserve.prefork.arbiter import torch_cuda
from tests.prefork.arbiter.test_forksafety import run

IMPORT = """
import sys
from mpserve.errors import ConfigurationError
from mpserve.prefork.arbiter import torch_cuda
torch_cuda.arm()
try:
    import torch.cuda
except ConfigurationError as error:
    print(error)
"""


def lazy_init(device: int) -> None:
    pass


@pytest.mark.parametrize("names", [{}, {"_lazy_init": None}, {"_lazy_init": lazy_init}])
def test_another_torch_is_refused(names: dict[str, object]) -> None:
    cuda = ModuleType("torch.cuda")
    vars(cuda).update(names)
    with pytest.raises(ConfigurationError, match=r"_lazy_init is not as in .* pip install 'torch=="):
        torch_cuda._replace_lazy_init(cuda)


def test_the_import_of_another_torch_ends_in_words(tmp_path: Path) -> None:
    (tmp_path / "torch" / "cuda").mkdir(parents=True)
    (tmp_path / "torch" / "__init__.py").touch()
    (tmp_path / "torch" / "cuda" / "__init__.py").write_text("_initialise = None\n")
    assert "torch.cuda._lazy_init is not as in" in run(IMPORT, tmp_path).stdout
    assert os.environ.get("PYTORCH_NVML_BASED_CUDA_CHECK") is None
