"""`m1agent doctor`: what this machine has, and what a model needs of it, before anything is loaded."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
from collections.abc import Mapping
from dataclasses import asdict, replace
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from m1agent.errors import ModelError, UsageError

if TYPE_CHECKING:
    from m1runtime.memory import MemoryPlan

Cards = list[tuple[str, str | None, "MemoryPlan | None"]]
EXIT_FITS, EXIT_TOO_LARGE = 0, 1
CONTEXT = 131_072
PACKAGES = ("m1agent", "torch", "triton", "safetensors", "tokenizers", "llguidance", "pydantic", "mcp")
HELP = """\
Show the machine, and with --model what a model needs: weights, KV, states, and the cards that hold them.
The folder needs its config.json; the weights need not be there yet.

  m1agent doctor --model ./MiniMax-M1-80k --context 1000000 --sessions 4 --quantization int8

With --server, asks a compatible server what it can do, in a handful of small requests.

  m1agent doctor --server openai:Qwen/Qwen3-8B@http://gpu:8000/v1
"""
EPILOG = """\
exit codes: 0 the model fits this machine and the server answers (where asked about), 1 it does not, 2 wrong usage
"""


def add_doctor(commands: Any) -> None:
    """Add `doctor` to the parser."""
    doctor: argparse.ArgumentParser = commands.add_parser(
        "doctor",
        help="show the machine, and whether a model fits it",
        description=HELP,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    doctor.add_argument("--model", metavar="FOLDER", help="a checkpoint folder (its config.json is enough), or m1-nano")
    doctor.add_argument(
        "--context", type=_count, metavar="N", help=f"tokens of a session (default: {CONTEXT:,}, or the model's most)"
    )
    doctor.add_argument("--sessions", type=_count, default=1, metavar="N", help="sessions at once (default: 1)")
    doctor.add_argument("--quantization", metavar="KIND", help="int8-experts, int8, int4-experts or int4")
    doctor.add_argument("--devices", type=_count, default=1, metavar="N", help="tensor-parallel ranks (default: 1)")
    doctor.add_argument("--device", metavar="NAME", help="cpu or cuda (default: cuda where there is one)")
    doctor.add_argument("--dtype", metavar="NAME", help="of what is not quantised (default: fp32 on a CPU, else bf16)")
    doctor.add_argument("--server", metavar="MODEL", help="openai:<model>@<base url> or minimax:<model>")
    doctor.add_argument("--json", action="store_true", help="print as JSON")
    doctor.set_defaults(command=examine)


def examine(given: argparse.Namespace) -> int:
    """`m1agent doctor`."""
    if given.server is not None:
        return asyncio.run(_examine_server(given))
    found: dict[str, Any] = {"machine": machine()}
    if given.model is None:
        print(json.dumps(found, indent=2) if given.json else _machine_text(found["machine"]))
        return EXIT_FITS
    plan, cards = _plans(given)
    if given.json:
        print(json.dumps(found | {"plan": plan.to_dict(), "cards": _cards_data(cards)}, indent=2))
    else:
        print(_machine_text(found["machine"]), plan, _verdict(plan), _cards_text(plan, cards), sep="\n\n")
    return EXIT_FITS if plan.fits else EXIT_TOO_LARGE


async def _examine_server(given: argparse.Namespace) -> int:
    from m1agent.models import load_model
    from m1agent.models.openai import OpenAIModel
    from m1agent.models.probe import probe

    model = load_model(given.server)
    if not isinstance(model, OpenAIModel):
        raise UsageError(f"--server asks a compatible server, such as openai:<model>@<base url>, not '{given.server}'")
    try:
        profile = await probe(model)
    finally:
        await model.aclose()
    print(json.dumps(asdict(profile), indent=2) if given.json else "\n".join(profile.lines()))
    return EXIT_FITS if profile.reachable else EXIT_TOO_LARGE


def machine() -> dict[str, Any]:
    """CPU, cores this process may use, memory, GPUs and versions; bytes and counts."""
    versions = {name: _version(name) for name in PACKAGES}
    return {
        "processor": _processor(),
        "cores": {"usable": _usable_cores(), "present": os.cpu_count()},
        "memory": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "gpus": _gpus() if versions["torch"] else [],
        "python": platform.python_version(),
        "versions": versions,
    }


def _plans(given: argparse.Namespace) -> tuple[MemoryPlan, Cards]:
    """The plan for this machine, and for each kind of card and quantisation the one on the fewest cards."""
    try:
        import torch

        from m1runtime import M1RuntimeError, ModelConfig
        from m1runtime.devices import as_device, as_dtype
        from m1runtime.engine import BUNDLED
        from m1runtime.memory import CARDS, QUANTIZATIONS, Wish, available_bytes, devices_needed, plan_memory
    except ModuleNotFoundError as error:
        raise ModelError(f"memory plans need {error.name}: pip install 'm1agent[runtime]'") from error
    try:
        config = ModelConfig.from_file(BUNDLED.get(given.model, Path(given.model)))
        device = as_device(given.device)
        context = given.context or min(CONTEXT, config.max_position_embeddings)
        wish = Wish(as_dtype(given.dtype, device), context, given.sessions, given.quantization, given.devices)
        # Ranks on one CPU share its memory.
        available = available_bytes(device) // (given.devices if device.type == "cpu" else 1)
        plan = plan_memory(config, wish, device=str(device), available=available)
        dtype = as_dtype(given.dtype, torch.device("cuda"))
        schemes = (None, *QUANTIZATIONS) if given.quantization is None else (given.quantization,)
        wishes = [replace(wish, dtype=dtype, quantization=scheme) for scheme in schemes]
        return plan, [(card, w.quantization, devices_needed(config, w, card)) for card in CARDS for w in wishes]
    except M1RuntimeError as error:
        raise ModelError(str(error)) from error


def _verdict(plan: MemoryPlan) -> str:
    w = plan.wish
    if plan.fits:
        most, longest = plan.most_sessions, plan.longest_context
        return f"It fits: up to {most:,} sessions of {w.context:,} tokens, or {w.sessions:,} of {longest:,} tokens."
    return "\n".join(
        ["It does not fit. What would:", *(f"  {offer}" for offer in plan.offers)]
        if plan.offers
        else ["It does not fit, and no smaller plan does."]
    )


def _cards_text(plan: MemoryPlan, cards: Cards) -> str:
    w = plan.wish
    wanted = "a session" if w.sessions == 1 else f"{w.sessions:,} sessions"
    lines = [
        f"The fewest cards for {wanted} of {w.context:,} tokens, and the sessions that they hold:",
        f"  {'card':<8}{'weights':<14}{'cards':>6} {'GiB on each':>12} {'sessions':>10}",
    ]
    for card, scheme, fewest in cards:
        held = "  too large for any number of them" if fewest is None else _held(fewest)
        lines.append(f"  {card:<8}{scheme or 'none':<14}{held}")
    return "\n".join(lines)


def _cards_data(cards: Cards) -> list[dict[str, Any]]:
    return [
        {"card": card, "quantization": scheme, "plan": fewest and fewest.to_dict()} for card, scheme, fewest in cards
    ]


def _held(plan: MemoryPlan) -> str:
    return f"{plan.wish.devices:>6} {plan.total / 2**30:>12,.1f} {plan.most_sessions:>10,}"


def _machine_text(found: Mapping[str, Any]) -> str:
    cores, gpus = found["cores"], found["gpus"]
    rows = [
        ("processor", found["processor"]),
        ("cores", f"{cores['usable']} usable of {cores['present']}"),
        ("memory", f"{found['memory'] / 2**30:.1f} GiB"),
        ("GPUs", ", ".join(f"{gpu['name']} {gpu['memory'] / 2**30:.0f} GiB" for gpu in gpus) or "none"),
        ("Python", found["python"]),
        *((name, version or "not installed") for name, version in found["versions"].items()),
    ]
    return "\n".join(f"{name:<14}{value}" for name, value in rows)


def _usable_cores() -> int:
    """Cores by affinity, or fewer where the control group grants less time."""
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text(encoding="ascii").split()
    except (OSError, ValueError):
        return affinity
    return affinity if quota == "max" else max(1, min(affinity, int(quota) // int(period)))


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def _gpus() -> list[dict[str, Any]]:
    import torch

    cuda: Any = torch.cuda
    found = [cuda.get_device_properties(index) for index in range(cuda.device_count())]
    return [{"name": gpu.name, "memory": gpu.total_memory} for gpu in found]


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _count(text: str) -> int:
    digits = text.replace(",", "").replace("_", "")
    if not digits.isdecimal() or int(digits) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number of at least 1, not {text}")
    return int(digits)
