"""sympy, typed as Any: its annotations are partial, and every value here is an expression."""

from __future__ import annotations

import importlib
from typing import Any

mpmath: Any = importlib.import_module("mpmath")
sympy: Any = importlib.import_module("sympy")
manualintegrate: Any = importlib.import_module("sympy.integrals.manualintegrate").manualintegrate
StrPrinter: Any = importlib.import_module("sympy.printing.str").StrPrinter
