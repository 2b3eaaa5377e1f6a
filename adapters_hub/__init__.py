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
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from adapters_hub.blend import Blend as Blend
    from adapters_hub.blendfile import BlendFile as BlendFile
    from adapters_hub.errors import AdaptersHubError as AdaptersHubError
    from adapters_hub.fitting import fit as fit
    from adapters_hub.info import AdapterInfo as AdapterInfo
    from adapters_hub.library import Library as Library
    from adapters_hub.loading import load as load
    from adapters_hub.loading import load_backbone as load_backbone
    from adapters_hub.lookup import Resolution as Resolution
    from adapters_hub.model import AdaptedModel as AdaptedModel
    from adapters_hub.settings import TrainingSettings as TrainingSettings
    from adapters_hub.training import train as train

__version__ = "0.1.0"

_HOME = {
    "AdaptedModel": "model",
    "AdapterInfo": "info",
    "AdaptersHubError": "errors",
    "Blend": "blend",
    "BlendFile": "blendfile",
    "Library": "library",
    "Resolution": "lookup",
    "TrainingSettings": "settings",
    "fit": "fitting",
    "load": "loading",
    "load_backbone": "loading",
    "train": "training",
}
__all__ = [*_HOME, "__version__"]


def __getattr__(name: str) -> Any:
    """Import a public name from its module on first use (PEP 562)."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME})
