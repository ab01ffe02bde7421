"""The process that computes: one JSON request a line on stdin, one JSON reply a line on stdout."""

from __future__ import annotations

import json
import signal
import sys
from typing import TextIO

MEMORY_BYTES = 1 << 30
_GRACE_S = 2.0


def main() -> None:
    """Serve requests until stdin closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _limit_memory()
    replies = sys.stdout
    sys.stdout = sys.stderr
    _warm_up()
    _send(replies, {"ready": True})
    for line in sys.stdin:
        _send(replies, _serve(json.loads(line)))


def _serve(request: dict[str, str | float]) -> dict[str, str]:
    """The reply to one request; a worker whose parent is gone ends itself when the time is over."""
    from m1tools.symbolic.errors import MathsError
    from m1tools.symbolic.operations import answer

    _alarm(float(request["seconds"]) + _GRACE_S)
    try:
        return {"result": answer(str(request["expression"]), str(request["operation"]))}
    except MathsError as error:
        return {"error": str(error)}
    except RecursionError:
        return {"error": "the expression is too deeply nested to compute. Split it."}
    except MemoryError:
        return {"error": "the computation needs too much memory. Send a smaller expression.", "restart": "yes"}
    except Exception as error:
        return {"error": f"this could not be computed ({type(error).__name__}). Write it in a simpler form."}
    finally:
        _alarm(0.0)


def _alarm(seconds: float) -> None:
    if sys.platform != "win32":
        signal.setitimer(signal.ITIMER_REAL, seconds)


def _limit_memory() -> None:
    if sys.platform == "win32":
        return
    import resource

    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    limit = MEMORY_BYTES if hard == resource.RLIM_INFINITY else min(MEMORY_BYTES, hard)
    resource.setrlimit(resource.RLIMIT_AS, (limit, hard))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _warm_up() -> None:
    """Fill the caches and lazy imports that the first request of a kind would pay for."""
    from m1tools.symbolic.operations import answer

    for expression, operation in (
        ("x^2 sin x", "integral"),
        ("x^2 - 4", "solve"),
        ("cos x = x", "solve"),
        ("sin(x)/x as x -> 0", "limit"),
    ):
        answer(expression, operation)


def _send(replies: TextIO, reply: dict[str, str] | dict[str, bool]) -> None:
    replies.write(json.dumps(reply) + "\n")
    replies.flush()


if __name__ == "__main__":
    main()
