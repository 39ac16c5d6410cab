"""howsure: how sure is your network? A benchmark suite of uncertainty scores for image classifiers."""

import os
from pathlib import Path

# keep torch's profiler, which measures peak memory, from logging every step
os.environ.setdefault("KINETO_LOG_LEVEL", "99")
os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")

_root = Path(__file__).resolve().parent.parent
if (_root / "setup.cfg").is_file():  # a checkout: the plugin folders stand beside this one
    __path__.append(str(_root))

from .backbone import Backbone, InputSpec, Recipe  # noqa: E402
from .data import Dataset  # noqa: E402
from .errors import MissingData, UserError  # noqa: E402
from .image_files import FolderImages  # noqa: E402
from .images import ArrayImages, Images  # noqa: E402
from .losses import Confound, Loss, Predicted, Uniform  # noqa: E402
from .method import Method  # noqa: E402
from .network import Network  # noqa: E402
from .plugins import register  # noqa: E402
from .representation import Batch, Representation, Reps, Tap  # noqa: E402
from .representations import (  # noqa: E402
    ActivationNorms,
    Features,
    GradNorms,
    Head,
    Labels,
    LayerMeans,
    LayerMoments,
    Logits,
    SmallGrads,
)

__version__ = "0.1.0"

__all__ = [
    "ActivationNorms",
    "ArrayImages",
    "Backbone",
    "Batch",
    "Confound",
    "Dataset",
    "Features",
    "FolderImages",
    "GradNorms",
    "Head",
    "Images",
    "InputSpec",
    "Labels",
    "LayerMeans",
    "LayerMoments",
    "Logits",
    "Loss",
    "Method",
    "MissingData",
    "Network",
    "Predicted",
    "Recipe",
    "Representation",
    "Reps",
    "SmallGrads",
    "Tap",
    "Uniform",
    "UserError",
    "register",
]
