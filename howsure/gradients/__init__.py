"""The gradient engine: exact per-sample squared gradient norms of every parameter, in less than a training step.

``grad_sq_norms`` is the engine, ``one_by_one`` the slow reference, ``verify`` compares the two on given inputs,
``explain`` says which rule each parameter takes. ``docs/gradients.md`` has the mathematics.
"""

from .engine import grad_sq_norms
from .explanation import explain
from .reference import one_by_one, verify
from .result import GradResult

__all__ = ["GradResult", "explain", "grad_sq_norms", "one_by_one", "verify"]
