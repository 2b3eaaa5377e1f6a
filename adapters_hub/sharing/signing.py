"""Sign an adapter's files with an elliptic key, and say how files differ from what was signed.

Signing is Sigstore's model-signing, offline: ``model_signing verify key`` checks what is
written here. Verifying is `library.signatures`. Beside the signature goes ``signed.json``, which is
signed too: a digest of every tensor, the configuration, the card. So a difference can be named
down to tensors and fields; the signatures of others are compared file by file. Never imports torch.
"""

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from adapters_hub.errors import AdapterFileError, AdaptersHubError, SettingsError, SignatureError
from adapters_hub.extras import require
from adapters_hub.library import safetensors_file as tensorfile
from adapters_hub.library.adapter_file import CARD_FILE, CONFIG_FILE, WEIGHTS_FILE, read_config
from adapters_hub.library.atomic import atomic_write
from adapters_hub.library.json_fields import read_json
from adapters_hub.library.signatures import (
    Difference,
    compare,
    read_public_key,
    read_signature,
    signature_of,
)
from adapters_hub.sharing.printable import printable

DETAILS_FILE = "signed.json"
PASSWORD_VARIABLE = "ADAPTERS_HUB_KEY_PASSWORD"

_FORMAT = "adapters_hub.signed"
_MAX_DETAILS = 20_000_000  # a hundred thousand tensors
_MAX_CARD = 1_000_000
_MAX_SHOWN = 20  # tensors or fields of a kind


@dataclass(frozen=True)
class Verification:
    """What came of verifying. ``key``: its name and digest; ``difference``: by file;
    ``details``: by tensor, field of the configuration or line of the card, where it is known.
    """

    path: Path
    key: str
    difference: Difference
    details: tuple[str, ...] = ()

    def __str__(self) -> str:
        if not self.difference:
            return f"{self.path}: as {self.key} signed it"
        lines = [*map(printable, self.difference.lines()), *self.details]
        return "\n  ".join([f"{self.path}: not as {self.key} signed it", *lines])


def new_key(path: str | os.PathLike[str]) -> tuple[Path, Path]:
    """Make a key on P-256: ``<path>.pem``, private (owner only, no password), and ``<path>.pub``.

    Raises `SettingsError` if either is there already.
    """
    require("cryptography", "sign", "making a key")
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.serialization import (
        Encoding,
        NoEncryption,
        PrivateFormat,
        PublicFormat,
    )

    private, public = Path(f"{path}.pem"), Path(f"{path}.pub")
    if taken := [str(place) for place in (private, public) if place.exists()]:
        raise SettingsError(f"{taken[0]} is there already; a key is never replaced")
    key = ec.generate_private_key(ec.SECP256R1())
    secret = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    shown = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    try:
        private.parent.mkdir(parents=True, exist_ok=True)
        with open(os.open(private, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(secret)
        public.write_bytes(shown)
    except OSError as error:
        raise SettingsError(f"{private}: {error.strerror or error}") from None
    return private, public


def sign(path: str | os.PathLike[str], key: str | os.PathLike[str]) -> Path:
    """Sign a folder, or a lone file, with a private key in PEM; returns the signature's path.

    All files are covered but what git and the Hub keep beside them. A signature that is there is
    replaced. The password of a key that has one is ``$ADAPTERS_HUB_KEY_PASSWORD``. Raises
    `SettingsError` for the key, `SignatureError` for what cannot be signed, `MissingExtraError`.
    """
    signing = require("model_signing.signing", "sign", "signing")
    hashing = require("model_signing.hashing", "sign", "signing")
    path = Path(path)
    place = signature_of(path)
    if not path.exists():
        raise SignatureError(f"{path}: no such folder or file")
    password = os.environ.get(PASSWORD_VARIABLE)
    try:
        signer = signing.Config().use_elliptic_key_signer(
            private_key=Path(key), password=password.encode() if password else None
        )
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise SettingsError(
            f"{key}: cannot sign with it ({error}); give a private elliptic key in PEM (P-256, "
            f"P-384 or P-521), its password in ${PASSWORD_VARIABLE}"
        ) from None
    how = hashing.Config().set_allow_symlinks(True)
    partial = place.with_name(f".{place.name}.{os.urandom(4).hex()}")
    try:
        if path.is_dir():
            place.unlink(missing_ok=True)  # the old one: a failure leaves the folder unsigned
            with atomic_write(path / DETAILS_FILE) as file:
                file.write(json.dumps(_details(path), ensure_ascii=False).encode())
            how.set_ignored_paths(paths=[place.name, partial.name, ".cache"])
        signer.set_hashing_config(how).sign(path, partial)
        os.replace(partial, place)
    except (OSError, ValueError) as error:
        if isinstance(error, AdaptersHubError):
            raise
        raise SignatureError(f"{path}: cannot be signed ({error})") from None
    finally:
        partial.unlink(missing_ok=True)
    return place


def verify(path: str | os.PathLike[str], keys: Iterable[str | Path]) -> Verification:
    """How a signed folder or file differs from what one of the keys (public, PEM) signed.

    Raises `SignatureError` where there is no signature, or none of these keys'; `SettingsError` for
    a file that is no such key.
    """
    path = Path(path)
    if not path.exists():
        raise SignatureError(f"{path}: no such folder or file")
    key, signed = read_signature(path, [read_public_key(each) for each in keys])
    difference = compare(path, signed)
    details: list[str] = []
    if difference.changed and path.is_dir() and DETAILS_FILE in signed:
        details = [*_compare_details(path, signed, difference)]
    return Verification(path, str(key), difference, tuple(details))


def _details(folder: Path) -> dict[str, object]:
    """What a folder's files say, for `_compare_details`; what cannot be read is left out."""
    return {
        "format": _FORMAT,
        "version": 1,
        "tensors": _tensors(folder / WEIGHTS_FILE),
        "metadata": _metadata(folder / WEIGHTS_FILE),
        "config": _config(folder / CONFIG_FILE),
        "card": _card(folder / CARD_FILE),
    }


def _compare_details(
    folder: Path, signed: Mapping[str, str], difference: Difference
) -> Iterator[str]:
    try:
        raw = tensorfile.read_small(folder / DETAILS_FILE, _MAX_DETAILS)
        if hashlib.sha256(raw).hexdigest() != signed[DETAILS_FILE]:
            return  # the details were changed too, so they cannot be trusted
        before = json.loads(raw)
        if before["format"] != _FORMAT or before["version"] != 1:
            return
        old = {kind: dict(before[kind]) for kind in ("tensors", "metadata", "config")}
        card = list(before["card"])
    except (OSError, AdapterFileError, ValueError, KeyError, TypeError, RecursionError):
        return  # another program uses this file name
    if WEIGHTS_FILE in difference.changed:
        yield from _fields("tensor", old["tensors"], _tensors(folder / WEIGHTS_FILE))
        yield from _fields("metadata", old["metadata"], _metadata(folder / WEIGHTS_FILE))
    if CONFIG_FILE in difference.changed:
        yield from _fields(CONFIG_FILE, old["config"], _config(folder / CONFIG_FILE))
    if CARD_FILE in difference.changed:
        import difflib

        lines = difflib.unified_diff(card, _card(folder / CARD_FILE), lineterm="", n=0)
        shown = [line for line in lines if line[:2] not in ("--", "++", "@@")]
        yield from _some([f"{CARD_FILE}: {printable(line, 200)}" for line in shown])


def _fields(what: str, old: Mapping[str, object], new: Mapping[str, object]) -> list[str]:
    lines = []
    for name in sorted(old.keys() | new.keys()):
        if name not in new:
            lines.append(f"{what} missing: {_shown(name)}")
        elif name not in old:
            lines.append(f"{what} added: {_shown(name)}")
        elif old[name] != new[name]:
            values = "" if what == "tensor" else f": {_shown(old[name])} → {_shown(new[name])}"
            lines.append(f"{what} changed: {_shown(name)}{values}")
    return _some(lines)


def _some(lines: list[str]) -> list[str]:
    more = len(lines) - _MAX_SHOWN
    return lines if more <= 0 else [*lines[:_MAX_SHOWN], f"… and {more} more"]


def _shown(value: object) -> str:
    """A value in a line: what cannot be printed is escaped, what is long is cut."""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return printable(text, 80)


def _tensors(path: Path) -> dict[str, object]:
    """The digest of each tensor: dtype, shape and bytes."""
    try:
        return dict(tensorfile.digests(path, tensorfile.read_header(path)))
    except (OSError, AdapterFileError):
        return {}


def _metadata(path: Path) -> dict[str, object]:
    try:
        metadata = tensorfile.read_header(path).metadata
    except (OSError, AdapterFileError):
        return {}
    fields: dict[str, object] = {}
    for key, text in metadata.items():
        try:
            value: object = read_json(text)
        except (ValueError, RecursionError):
            value = text
        fields.update(
            {f"{key}.{name}": each for name, each in value.items()}
            if isinstance(value, dict)
            else {key: value}
        )
    return fields


def _config(path: Path) -> dict[str, object]:
    try:
        return read_config(path)
    except AdapterFileError:
        return {}


def _card(path: Path) -> list[str]:
    try:
        return tensorfile.read_small(path, _MAX_CARD).decode(errors="replace").splitlines()
    except (OSError, AdapterFileError):
        return []
