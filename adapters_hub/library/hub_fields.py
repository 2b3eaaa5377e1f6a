"""The values that the Hub accepts in a model card's fields, made from an adapter's metadata.

The Hub refuses a commit whose card has a language that is not an ISO 639 code, a licence that is
not on its list, or a base model that is no id. Knows these rules, as of
https://huggingface.co/docs/hub/model-cards; does not know adapters.
"""

import os
import re

from adapters_hub.library.paths import STARTER

_LICENSES = """
    afl-3.0 agpl-3.0 apache-2.0 apple-amlr apple-ascl artistic-2.0 bigcode-openrail-m
    bigscience-bloom-rail-1.0 bigscience-openrail-m bsd bsd-2-clause bsd-3-clause
    bsd-3-clause-clear bsl-1.0 c-uda cc cc-by-2.0 cc-by-2.5 cc-by-3.0 cc-by-4.0 cc-by-nc-2.0
    cc-by-nc-3.0 cc-by-nc-4.0 cc-by-nc-nd-3.0 cc-by-nc-nd-4.0 cc-by-nc-sa-2.0 cc-by-nc-sa-3.0
    cc-by-nc-sa-4.0 cc-by-nd-4.0 cc-by-sa-3.0 cc-by-sa-4.0 cc0-1.0 cdla-permissive-1.0
    cdla-permissive-2.0 cdla-sharing-1.0 creativeml-openrail-m deepfloyd-if-license ecl-2.0 epl-1.0
    epl-2.0 etalab-2.0 eupl-1.1 eupl-1.2 fair-noncommercial-research-license gemma gfdl gpl gpl-2.0
    gpl-3.0 h-research intel-research isc lgpl lgpl-2.1 lgpl-3.0 lgpl-lr llama2 llama3 llama3.1
    llama3.2 llama3.3 llama4 lppl-1.3c mit mpl-2.0 ms-pl ncsa odbl odc-by ofl-1.1 openmdw-1.0
    openrail openrail++ osl-3.0 other pddl postgresql unknown unlicense wtfpl zlib
"""
_ID = re.compile(r"(?:[\w][\w.-]*/)?[\w][\w.-]*")
_ISO = re.compile(r"[a-z]{2,3}")


def hub_id(name: str | None) -> str | None:
    """A backbone's or data set's name, if it can be an id on the Hub; None for a folder."""
    if name is None or name == STARTER or not _ID.fullmatch(name) or len(name) > 96:
        return None
    return None if os.path.exists(name) else name


def language_fields(tag: str | None) -> dict[str, object]:
    """``language`` as an ISO 639 code; the BCP-47 tag, where it says more, beside it."""
    if tag is None:
        return {}
    code = tag.split("-")[0].lower()
    if not _ISO.fullmatch(code):
        return {"language_bcp47": [tag]}
    return {"language": code} if code == tag else {"language": code, "language_bcp47": [tag]}


def license_fields(name: str | None) -> dict[str, object]:
    """``license`` by the Hub's identifier; what it has none for is ``other`` with its name."""
    if name is None:
        return {}
    known = name.strip().lower()
    return (
        {"license": known}
        if known in _LICENSES.split()
        else {"license": "other", "license_name": name}
    )
