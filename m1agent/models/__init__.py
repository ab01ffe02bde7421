"""Models by name."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from m1agent.errors import ModelNotFound

if TYPE_CHECKING:
    from m1agent.models.base import Model

BUNDLED = ("m1-nano",)
FORMS = (
    'a bundled model ("m1-nano"), the folder of a checkpoint (config.json, tokenizer.json, *.safetensors), '
    '"openai:<model>@<base url>" (any compatible server), "minimax:<model>", or "hf:<repo or folder>" (transformers)'
)


def load_model(name: str | Path) -> Model:
    """The model a name stands for: a bundled one, a checkpoint folder, one behind a server, or one of transformers.
    Weights are read, and servers asked, at the first use.

    Nothing is shared: each call gives a model of its own, and whoever calls closes it.

    Raises:
        ModelNotFound: the name is of no known form; the text lists the forms.
    """
    from m1agent.models.local import LocalModel

    text = str(name)
    if text in BUNDLED:
        return LocalModel(text)
    scheme, colon, rest = text.partition(":")
    if colon and scheme.isalpha() and len(scheme) > 1 and not Path(text).exists():
        return _of_scheme(scheme, rest)
    folder = Path(text).expanduser()
    if not folder.is_dir():
        raise ModelNotFound(f"there is no model '{text}'. A model is {FORMS}.")
    if not (folder / "config.json").is_file():
        raise ModelNotFound(f"'{text}' is a folder without a config.json. A model is {FORMS}.")
    return LocalModel(folder)


def _of_scheme(scheme: str, rest: str) -> Model:
    if scheme in ("http", "https"):
        raise ModelNotFound(f"'{scheme}:{rest}' is an address; a model there is openai:<model>@{scheme}:{rest}")
    if scheme not in ("openai", "minimax", "hf") or not rest:
        raise ModelNotFound(f"there is no model '{scheme}:{rest}'. A model is {FORMS}.")
    if scheme == "hf":
        from m1agent.models.transformers import TransformersModel

        return TransformersModel(rest)
    model, url = _at_url(rest)
    try:
        if scheme == "minimax":
            from m1agent.models.minimax import MiniMaxModel

            return MiniMaxModel(model, url) if url else MiniMaxModel(model)
        from m1agent.models.openai import OpenAIModel

        return OpenAIModel(model, url) if url else OpenAIModel(model)
    except ValueError as error:
        raise ModelNotFound(f"'{scheme}:{rest}': {error}") from None


def _at_url(rest: str) -> tuple[str, str]:
    """A model's name and the address behind it, "" where there is none; names may hold an @ of their own."""
    at = rest.find("@http")
    return (rest[:at], rest[at + 1 :]) if at > 0 else (rest, "")
