"""Signatures of an adapter's files: Sigstore bundles made with elliptic keys, read and checked.

    <adapter>/model.sig     a bundle: the SHA-256 of every other file there, and a signature of that
    <adapter>/signed.json   optional, and signed too: what the files said, to name what changed
    <file>.sig              the same for a lone file

The format is that of Sigstore's model-signing (https://github.com/sigstore/model-transparency): an
in-toto statement in a DSSE envelope in a bundle. Reading it needs the package cryptography alone,
since every load of a library that demands signatures comes here. Stricter than model-signing's own
reader: every file must be covered, so what a signature says should be left out is not followed, and
digests of its versions before 1.0 are refused. Knows files and keys; does not know who is trusted.
"""

import base64
import hashlib
import json
import os
import stat
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adapters_hub.errors import AdapterFileError, SettingsError, SignatureError
from adapters_hub.extras import require
from adapters_hub.library.json_fields import check_count
from adapters_hub.library.safetensors_file import open_regular, read_small

SIGNATURE_FILE = "model.sig"
SIGNATURE_SUFFIX = ".sig"
NEVER_SIGNED = (".cache", ".git", ".gitattributes", ".github", ".gitignore")
"""At the top of a folder, what git and the Hub put there; no reader of adapters looks at it."""

_MEDIA_TYPE = "application/vnd.dev.sigstore.bundle.v0.3+json"
_PAYLOAD_TYPE = "application/vnd.in-toto+json"
_STATEMENT = "https://in-toto.io/Statement/v1"
_PREDICATE = "https://model_signing/signature/v1.0"
_CURVES = {"secp256r1": "SHA256", "secp384r1": "SHA384", "secp521r1": "SHA512"}
_MAX_BYTES = 4_000_000  # of a signature: ten thousand files
_MAX_KEY_BYTES = 20_000
_MAX_FILES = 10_000
_CHUNK = 1 << 20


@dataclass(frozen=True)
class PublicKey:
    """A public elliptic key, and what it is called. ``digest``: hexadecimal SHA-256 of its PEM."""

    name: str
    digest: str
    key: Any

    def __str__(self) -> str:
        return f"{self.name} ({self.digest[:12]}…)"

    def signed(self, signature: bytes, message: bytes) -> bool:
        """Whether a signature (ECDSA, DER) of a message was made with this key's other half."""
        from cryptography.exceptions import InvalidSignature
        from cryptography.hazmat.primitives import hashes
        from cryptography.hazmat.primitives.asymmetric import ec

        algorithm = getattr(hashes, _CURVES[self.key.curve.name])()
        try:
            self.key.verify(signature, message, ec.ECDSA(algorithm))
        except InvalidSignature:
            return False
        return True


@dataclass(frozen=True)
class Difference:
    """How files differ from what was signed: paths below the folder, each in order."""

    changed: tuple[str, ...] = ()
    added: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.changed or self.added or self.missing)

    def lines(self) -> list[str]:
        """A line each."""
        kinds = (("changed", self.changed), ("added", self.added), ("missing", self.missing))
        return [f"{kind}: {path}" for kind, paths in kinds for path in paths]


def read_public_key(path: str | Path, name: str | None = None) -> PublicKey:
    """Read a PEM file with a public key on P-256, P-384 or P-521.

    Raises `SettingsError` for anything else, `MissingExtraError` without the extra ``sign``.
    """
    serialization = require(
        "cryptography.hazmat.primitives.serialization", "sign", "reading a signature"
    )
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric import ec

    try:
        raw = read_small(path, _MAX_KEY_BYTES)
        key = serialization.load_pem_public_key(raw)
    except OSError as error:
        raise SettingsError(f"{path}: {error.strerror or error}") from None
    except AdapterFileError as error:
        raise SettingsError(str(error)) from None
    except (ValueError, UnsupportedAlgorithm):
        hint = ": this is a private key; keep it to yourself" if b"PRIVATE KEY" in raw else ""
        raise SettingsError(f"{path}: not a public key in PEM{hint}") from None
    if not isinstance(key, ec.EllipticCurvePublicKey) or key.curve.name not in _CURVES:
        raise SettingsError(
            f"{path}: not an elliptic key on P-256, P-384 or P-521; "
            "adapters-hub sign --new-key NAME makes one"
        )
    pem = key.public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    return PublicKey(name or Path(path).name, hashlib.sha256(pem).hexdigest(), key)


def signature_of(path: Path) -> Path:
    """Where the signature of a folder, or of a lone file, lies."""
    if path.is_dir():
        return path / SIGNATURE_FILE
    return path.with_name(path.name + SIGNATURE_SUFFIX)


def is_signed(path: Path) -> bool:
    """Whether there is a signature, whatever it says."""
    return signature_of(path).is_file()


def read_signature(
    path: str | os.PathLike[str], keys: Iterable[PublicKey]
) -> tuple[PublicKey, dict[str, str]]:
    """Which of the keys signed a folder or file, and the signed SHA-256 (hexadecimal) by path.

    A lone file's path is ``.``. Raises `SignatureError` if there is no signature, if none of the
    keys made it, or if it is no signature of this kind. The files are not looked at.
    """
    path, keys = Path(path), list(keys)
    place = signature_of(path)
    names = " or ".join(map(str, keys)) or "no key"
    try:
        bundle = read_small(place, _MAX_BYTES)
    except FileNotFoundError:
        raise SignatureError(
            f"{path}: unsigned (no {place.name}); wanted: {names}. Sign it: "
            f"adapters-hub sign {path} --key PRIVATE_KEY"
        ) from None
    except OSError as error:
        raise SignatureError(f"{place}: {error.strerror or error}") from None
    except AdapterFileError as error:
        raise SignatureError(str(error)) from None
    hint, payload, signature = _opened(bundle, place)
    message = b"DSSEv1 %d %s %d %s" % (
        len(_PAYLOAD_TYPE), _PAYLOAD_TYPE.encode(), len(payload), payload,
    )  # fmt: skip
    for key in keys:
        if key.signed(signature, message):
            return key, _signed_files(payload, place)
    if hint in {key.digest for key in keys}:
        raise SignatureError(f"{place}: damaged: it names the key {names} and does not fit it")
    raise SignatureError(
        f"{place}: signed with another key ({hint[:12] or 'unnamed'}…); wanted: {names}"
    )


def compare(path: str | os.PathLike[str], signed: Mapping[str, str]) -> Difference:
    """How the files of a folder, or a lone file, differ from their signed digests.

    Raises `SignatureError` for a folder of more files than an adapter has, or what cannot be read.
    """
    path = Path(path)
    try:
        there = {"."} if not path.is_dir() else set(_files(path))
        changed = [
            name
            for name in sorted(there & signed.keys())
            if file_digest(path if name == "." else path / name) != signed[name]
        ]
    except OSError as error:
        raise SignatureError(f"{path}: {error.strerror or error}") from None
    except AdapterFileError as error:
        raise SignatureError(str(error)) from None
    return Difference(
        tuple(changed), tuple(sorted(there - signed.keys())), tuple(sorted(signed.keys() - there))
    )


def check_signed(path: str | os.PathLike[str], keys: Iterable[PublicKey]) -> dict[str, str]:
    """The signed SHA-256 by path, if one of the keys signed just these files; `SignatureError`."""
    key, signed = read_signature(path, keys)
    if difference := compare(path, signed):
        raise SignatureError(
            f"{path}: not as {key} signed it: {'; '.join(difference.lines()[:10])}"
        )
    return signed


def file_digest(path: Path) -> str:
    """SHA-256 of a regular file, hexadecimal."""
    digest = hashlib.sha256()
    with open_regular(path) as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def _files(folder: Path) -> list[str]:
    """The paths below a folder that a signature must cover. Linked folders count as one path."""
    file_names: list[str] = []
    waiting = [folder]
    while waiting:
        for entry in os.scandir(waiting.pop()):
            name = Path(entry.path).relative_to(folder).as_posix()
            if name == SIGNATURE_FILE or name in NEVER_SIGNED:
                continue
            if stat.S_ISDIR(entry.stat(follow_symlinks=False).st_mode):
                waiting.append(Path(entry.path))
            else:
                file_names.append(name)
            if len(file_names) + len(waiting) > _MAX_FILES:
                raise AdapterFileError(f"{folder}: more than {_MAX_FILES} files, for an adapter")
    return file_names


def _opened(bundle: bytes, place: Path) -> tuple[str, bytes, bytes]:
    """A bundle's name of the key, its payload and its one signature, none of them verified yet."""
    try:
        text = bundle.decode()
        check_count(text)
        data = json.loads(text)
        if data["mediaType"] != _MEDIA_TYPE:
            raise ValueError(f"mediaType is {str(data['mediaType'])[:80]!r}, not {_MEDIA_TYPE}")
        material, envelope = data["verificationMaterial"], data["dsseEnvelope"]
        if "publicKey" not in material:
            raise ValueError("signed without a key of its signer's (keyless, or a certificate)")
        hint = material["publicKey"].get("hint") or ""
        if envelope["payloadType"] != _PAYLOAD_TYPE or not isinstance(hint, str):
            raise ValueError("no in-toto statement")
        (signature,) = envelope["signatures"]
        return hint, _base64(envelope["payload"]), _base64(signature["sig"])
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise SignatureError(
            f"{place}: not a signature that model-signing makes with an elliptic key ({error})"
        ) from None


def _base64(text: str) -> bytes:
    return base64.b64decode(text.encode("ascii"), validate=True)


def _signed_files(payload: bytes, place: Path) -> dict[str, str]:
    """Digests by path, of a payload whose signature is sound."""
    try:
        statement = json.loads(payload)
        if (statement["_type"], statement["predicateType"]) != (_STATEMENT, _PREDICATE):
            raise ValueError(f"made by another version: {statement['predicateType']!r}")
        predicate = statement["predicate"]
        how = predicate["serialization"]
        if how["method"] != "files" or how["hash_type"] != "sha256":
            raise ValueError("made of parts of files, or without SHA-256; sign whole files")
        files = {str(entry["name"]): str(entry["digest"]) for entry in predicate["resources"]}
        if len(files) != len(predicate["resources"]):
            raise ValueError("a file occurs twice")
        if any(entry["algorithm"] != "sha256" for entry in predicate["resources"]):
            raise ValueError("without SHA-256")
        return files
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise SignatureError(
            f"{place}: its signature is sound, what was signed is not: {error}"
        ) from None
