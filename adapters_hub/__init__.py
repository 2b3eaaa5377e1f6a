"""One frozen multilingual backbone, a LoRA adapter for every language and every domain.

    import adapters_hub as ah

    library = ah.Library("adapters")             # files and names: no torch yet
    library.list(language="de")
    model = ah.load("de", domain="hotel")        # the backbone they name, both adapters active
    model.classify(["Das Zimmer war ruhig."])
    model.use("de + 0.5*hotel")                  # swap; None is the bare backbone

Importing the package brings in no torch; what needs it is imported on first use.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from adapters_hub.errors import AdaptersHubError as AdaptersHubError
    from adapters_hub.library.adapter_file import AdapterInfo as AdapterInfo
    from adapters_hub.library.blend import Blend as Blend
    from adapters_hub.library.blend_file import BlendFile as BlendFile
    from adapters_hub.library.library import Library as Library
    from adapters_hub.library.lookup import Resolution as Resolution
    from adapters_hub.model import AdaptedModel as AdaptedModel
    from adapters_hub.model import load as load
    from adapters_hub.model import load_backbone as load_backbone
    from adapters_hub.training.blend_weights import fit as fit
    from adapters_hub.training.settings import TrainingSettings as TrainingSettings
    from adapters_hub.training.train import train as train

__version__ = "0.1.0"

_HOME = {
    "AdaptedModel": "model",
    "AdapterInfo": "library.adapter_file",
    "AdaptersHubError": "errors",
    "Blend": "library.blend",
    "BlendFile": "library.blend_file",
    "Library": "library.library",
    "Resolution": "library.lookup",
    "TrainingSettings": "training.settings",
    "fit": "training.blend_weights",
    "load": "model",
    "load_backbone": "model",
    "train": "training.train",
}
__all__ = [*_HOME, "__version__"]


def __getattr__(name: str) -> object:
    """Import a public name from its module on first use (PEP 562)."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME})
