"""Models by name."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from m1agent.errors import ModelNotFound

if TYPE_CHECKING:
    from m1agent.models.base import Model

BUNDLED = ("m1-nano",)
FORMS = 'a bundled model ("m1-nano"), or the folder of a checkpoint (config.json, tokenizer.json, *.safetensors)'


def load_model(name: str | Path) -> Model:
    """The model a name stands for: a bundled one, or a checkpoint folder. Weights are read at the first use.

    Nothing is shared: each call gives a model of its own, and whoever calls closes it.

    Raises:
        ModelNotFound: the name is of no known form; the text lists the forms.
    """
    from m1agent.models.local import LocalModel

    text = str(name)
    if text in BUNDLED:
        return LocalModel(text)
    scheme, colon, _ = text.partition(":")
    if colon and scheme.isalpha() and len(scheme) > 1 and not Path(text).exists():
        raise ModelNotFound(f"'{scheme}:' models are not supported by this version. A model is {FORMS}.")
    folder = Path(text).expanduser()
    if not folder.is_dir():
        raise ModelNotFound(f"there is no model '{text}'. A model is {FORMS}.")
    if not (folder / "config.json").is_file():
        raise ModelNotFound(f"'{text}' is a folder without a config.json. A model is {FORMS}.")
    return LocalModel(folder)
