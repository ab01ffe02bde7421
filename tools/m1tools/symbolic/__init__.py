"""Mathematics as people write it, computed by sympy in a worker process that can be killed.

The way of an expression: `lexer` (text to tokens), `parser` (tokens to nodes), `phrases` (the words around an
expression: "with respect to y", "from 0 to 1"), `bounds` (how large it could get), and, inside the worker, `build`
(nodes to sympy), `operations`, `solving` and `printing`. No text is ever evaluated as Python.
"""

from __future__ import annotations

from m1tools.symbolic.errors import MathsError
from m1tools.symbolic.pool import compute

__all__ = ["MathsError", "compute"]
