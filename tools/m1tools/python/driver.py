"""Runs code that came on stdin, as a notebook cell would: in the sandbox's own interpreter.

`python driver.py PLOTS`: the value of a last expression is printed, and open matplotlib figures are written as PNG to
the descriptor PLOTS, each after its length in eight bytes. Nothing here is trusted by who reads it.
"""

from __future__ import annotations

import ast
import io
import linecache
import os
import sys
import traceback
import types
import warnings
from typing import Any

NAME = "<code>"


def main() -> None:
    """Run the code; exit status 1 where it raised."""
    plots = int(sys.argv[1])
    code = sys.stdin.buffer.read().decode("utf-8", "replace")
    sys.stdin = io.TextIOWrapper(open(os.devnull, "rb"))
    sys.argv = [NAME]
    sys.path[0] = os.getcwd()
    linecache.cache[NAME] = (len(code), None, code.splitlines(keepends=True), NAME)
    warnings.filterwarnings("ignore", message=".*non-interactive, and thus cannot be shown")
    status = _run(code)
    try:
        _write_figures(plots)
    except Exception as error:
        print(f"The plots could not be written: {type(error).__name__}: {error}")
        status = 1
    sys.exit(status)


def _run(code: str) -> int:
    module = types.ModuleType("__main__")
    sys.modules["__main__"] = module
    try:
        body, last = _parts(code)
        exec(body, module.__dict__)
        if last is not None:
            value = eval(last, module.__dict__)
            if value is not None:
                print(value if isinstance(value, str) else repr(value))
    except SystemExit as stop:
        if stop.code is None or isinstance(stop.code, int):
            return stop.code or 0
        print(stop.code)
        return 1
    except BaseException as error:
        _print_error(error)
        return 1
    return 0


def _parts(code: str) -> tuple[types.CodeType, types.CodeType | None]:
    """The code, and its last expression apart."""
    tree = ast.parse(code, NAME)
    last = tree.body[-1] if tree.body else None
    if not isinstance(last, ast.Expr):
        return compile(tree, NAME, "exec"), None
    del tree.body[-1]
    return compile(tree, NAME, "exec"), compile(ast.Expression(last.value), NAME, "eval")


def _print_error(error: BaseException) -> None:
    """The traceback from the code on, without this file's part of it."""
    trace = error.__traceback__
    while trace is not None and trace.tb_frame.f_code.co_filename != NAME:
        trace = trace.tb_next
    traceback.print_exception(type(error), error, trace)


def _write_figures(plots: int) -> None:
    pyplot: Any = sys.modules.get("matplotlib.pyplot")
    for number in pyplot.get_fignums() if pyplot else ():
        image = io.BytesIO()
        pyplot.figure(number).savefig(image, format="png", bbox_inches="tight")
        os.write(plots, len(image.getbuffer()).to_bytes(8, "big"))
        os.write(plots, image.getvalue())


main()
