"""The library: a folder of adapters, listed, found by language or domain, changed atomically.

    <library>/<name>/adapter_config.json, adapter_model.safetensors, README.md
    <library>/.index.json     a cache of what the headers say; safe to delete
    <library>/.lock           what writers wait for
    <library>/.tmp/ .trash/   only while something is being changed

Knows files and names; never imports torch. Writers hold a lock, write beside and rename into
place; readers need no lock. What a killed writer left is put right by the next one to look.
"""

import errno
import json
import logging
import os
import shutil
import unicodedata
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from adapters_hub.errors import (
    AdapterFileError,
    AdapterNameError,
    AdaptersHubError,
    BackboneMismatchError,
    LibraryError,
    NotFoundError,
    SettingsError,
)
from adapters_hub.library import languages, lookup
from adapters_hub.library import model_card as card
from adapters_hub.library import safetensors_file as tensorfile
from adapters_hub.library.adapter_file import (
    CARD_FILE,
    CONFIG_FILE,
    METADATA_KEY,
    PROBLEM_TYPES,
    WEIGHTS_FILE,
    AdapterFiles,
    AdapterInfo,
    differing,
    in_order,
    metadata,
    read_adapter,
)
from adapters_hub.library.atomic import atomic_write
from adapters_hub.library.blend import NAME
from adapters_hub.library.checks import (
    check_fit,
    check_labels,
    local_fingerprint,
    missing_modules,
    with_card,
)
from adapters_hub.library.fingerprint import belongs
from adapters_hub.library.lookup import Resolution
from adapters_hub.library.paths import default_root

log = logging.getLogger(__name__)

_DEVICES = {"con", "prn", "aux", "nul", *(f"{d}{n}" for d in ("com", "lpt") for n in range(1, 10))}
_MAX_NAME = 96
_Infos = list[AdapterInfo]  # inside the class, `list` is the method
_Lines = list[str]


class Library:
    """A folder of adapters.

    ``Library()`` is ``$ADAPTERS_HUB_LIBRARY``, else ``./adapters``, else the bundled adapters for
    the starter backbone. A folder that does not exist yet is an empty library.
    """

    def __init__(self, root: str | os.PathLike[str] | None = None) -> None:
        self.root = Path(root).expanduser() if root is not None else default_root()
        self._path = str(self.root)  # asked for at every call of a model
        if self.root.exists() and not self.root.is_dir():
            raise LibraryError(f"{self.root} is a file, not a folder of adapters")

    def __repr__(self) -> str:
        return f"Library({str(self.root)!r})"

    def __len__(self) -> int:
        return len(self.list())

    def __bool__(self) -> bool:
        return True  # an empty library is one, too

    def __iter__(self) -> Iterator[AdapterInfo]:
        return iter(self.list())

    def __getitem__(self, name: str) -> AdapterInfo:
        return self.get(name)

    def __contains__(self, name: object) -> bool:
        return name in self._infos()

    # ── reading ──────────────────────────────────────────────────────────────────────────────

    def list(
        self,
        language: str | None = None,
        domain: str | None = None,
        *,
        task: str | None = None,
        fingerprint: str | None = None,
    ) -> _Infos:
        """The adapters in order of name, filtered by what is given.

        ``fingerprint`` keeps those of one backbone and those that name none. Damaged adapters are
        left out with a logged warning; `verify` says what is wrong with each.
        """
        tag = languages.canonical(language) if language is not None else None
        return [
            info
            for info in self._infos().values()
            if (tag is None or info.language == tag)
            and (domain is None or info.domain == domain)
            and (task is None or info.task == task)
            and (fingerprint is None or belongs(info.fingerprint, fingerprint))
        ]

    def names(self) -> _Lines:
        """The names of all adapter folders, damaged ones too."""
        if not self.root.is_dir():
            return []
        return sorted(
            _name_of(entry.name)
            for entry in os.scandir(self.root)
            if entry.is_dir(follow_symlinks=False) and not entry.name.startswith(".")
        )

    def state(self) -> int | None:
        """A number that changes whenever an adapter is added, replaced or removed."""
        try:
            return os.stat(self._path).st_mtime_ns
        except (FileNotFoundError, NotADirectoryError):
            return None

    def stamp(self, name: str) -> tuple[int, ...]:
        """The times and sizes of an adapter's files; empty if there is none."""
        return tuple(_state(str(self._folder(name))))

    def get(self, name: str) -> AdapterInfo:
        """The adapter of exactly this name; `NotFoundError` with the nearest names otherwise."""
        infos, name = self._infos(), unicodedata.normalize("NFC", name)
        if name not in infos:
            self.explain(name)
            raise NotFoundError(lookup.not_found(name, infos.values(), str(self.root)))
        return infos[name]

    def read(self, name: str) -> AdapterFiles:
        """The adapter's checked files, for the code that loads the numbers."""
        return read_adapter(Path(self.get(name).path or ""), name)

    def resolve(self, language: str, max_distance: int = languages.MAX_DISTANCE) -> Resolution:
        """The language adapter for a language: the exact one, else the closest one there is.

        A fallback is never silent: it is logged, and ``reason`` and ``distance`` say what was
        taken. Raises `NotFoundError` if nothing is within ``max_distance`` (CLDR's distance).
        """
        infos = self._infos()
        if language not in infos:
            self.explain(language)
        return lookup.resolve(language, [*infos.values()], max_distance, str(self.root))

    def find(self, term: str, fingerprint: str | None = None) -> AdapterInfo:
        """The one adapter a blend's term means: an adapter's name, or a language, or a domain.

        ``lang:it`` and ``domain:it`` say which. With a ``fingerprint``, only that backbone's
        adapters (and those that name none) are considered. Raises `NotFoundError`,
        `AmbiguousTermError` or `BackboneMismatchError`, and `LanguageError` for ``lang:`` before
        what is no language.
        """
        infos, term = self._infos(), unicodedata.normalize("NFC", term)
        if term.rpartition(":")[2] not in infos:
            self.explain(term)
        return lookup.find(term, [*infos.values()], fingerprint, str(self.root))

    def explain(self, term: str) -> None:
        """Raise the reason why a folder of a term's name is no adapter; nothing without a folder.

        `AdapterFileError` for a damaged one, `LibraryError` for a link.
        """
        folder = self.root / term.rpartition(":")[2]
        if folder.parent != self.root or folder.name.startswith("."):
            return
        if os.path.islink(folder):
            raise LibraryError(
                f"{folder} is a link to a folder, which a library does not follow: put the folder "
                "itself in its place, or add it under another name"
            )
        if os.path.isdir(folder):
            read_adapter(folder, folder.name)

    def verify(self, name: str) -> _Lines:
        """What is wrong with an adapter, a line each; empty if its files are as written."""
        folder = self._folder(name)
        try:
            files = read_adapter(folder, name)
        except AdaptersHubError as error:
            return [str(error)]
        problems = []
        actual = tensorfile.content_hash(files.weights, files.header)
        if files.info.hash is None:
            problems.append("no content hash was stored")
        elif actual != files.info.hash:
            problems.append(f"the tensors changed: {actual}, stored {files.info.hash}")
        if bad := tensorfile.first_non_finite(files.weights, files.header):
            problems.append(f"{bad} holds NaN or infinity")
        if missing := missing_modules(files, files.info.backbone):
            problems.append(missing)
        stored = json.loads(files.header.metadata.get(METADATA_KEY, "{}")).get("lora")
        if isinstance(stored, dict) and (keys := differing(stored, files.spec.config)):
            problems.append(f"{CONFIG_FILE} differs from the header in {', '.join(keys)}")
        return problems

    # ── changing ─────────────────────────────────────────────────────────────────────────────

    def add(
        self,
        source: str | os.PathLike[str],
        *,
        name: str | None = None,
        language: str | None = None,
        domain: str | None = None,
        task: str | None = None,
        labels: Iterable[str] | None = None,
        problem_type: str | None = None,
        backbone: str | None = None,
        license: str | None = None,
        replace_existing: bool = False,
    ) -> AdapterInfo:
        """Copy a PEFT LoRA folder, or a lone ``.safetensors`` of ours, into the library.

        What is not given is taken from the files, and ``domain=""`` drops theirs; plain PEFT's do
        not say the ``problem_type`` of a classification head, which is transformers'. The name
        defaults to the language and domain (``pt-BR``, ``hotel``, ``pt-BR-hotel``), else the
        source's name. ``backbone`` (a folder or ``starter``) stores that backbone's fingerprint.
        The files are checked, down to NaN, before anything is written; the library holds the old
        state or the new one, never between.
        """
        if problem_type not in (None, *PROBLEM_TYPES):
            raise SettingsError(
                f"problem_type={problem_type!r}: choose one of {', '.join(PROBLEM_TYPES)}"
            )
        files = read_adapter(Path(source))
        info = files.info
        if METADATA_KEY not in files.header.metadata and Path(source).is_dir():
            info = with_card(info, Path(source))
        given: dict[str, Any] = {
            "language": languages.canonical(language) if language is not None else None,
            "domain": domain,
            "task": task,
            "labels": (labels,) if isinstance(labels, str) else tuple(labels or ()) or None,
            "problem_type": problem_type,
            "backbone": backbone,
            "license": license,
        }
        info = replace(info, **{key: value for key, value in given.items() if value is not None})
        info = replace(info, domain=info.domain or None)
        if info.domain is not None:
            check_name(info.domain)
        fingerprint = local_fingerprint(info.backbone)
        if backbone is not None and not belongs(info.fingerprint, fingerprint):
            raise BackboneMismatchError(
                f"{source} belongs to another backbone:\n  adapter:  {info.fingerprint}\n"
                f"  backbone: {fingerprint} ({backbone})"
            )
        if backbone is not None and fingerprint is not None:
            check_fit(files, backbone)
        check_labels(files, info.labels)
        default = "-".join(part for part in (info.language, info.domain) if part)
        stem = Path(source).name.removesuffix(".safetensors")
        info = replace(
            info,
            name=check_name(name or default or stem),
            fingerprint=info.fingerprint or fingerprint,
            hash=tensorfile.content_hash(files.weights, files.header),
        )
        if bad := tensorfile.first_non_finite(files.weights, files.header):
            raise AdapterFileError(
                f"{files.weights}: {bad} holds NaN or infinity; nothing was added"
            )
        with self._locked(), self._staging() as stage:
            config = {
                k: v for k, v in files.spec.config.items() if k != "revision" or v is not None
            }
            if info.backbone is not None:
                config["base_model_name_or_path"] = info.backbone
            tensorfile.write_with_metadata(
                files.weights, files.header, stage / WEIGHTS_FILE, metadata(info, config)
            )
            _write(stage / CONFIG_FILE, json.dumps(in_order(config), indent=2) + "\n")
            _write(stage / CARD_FILE, card.write_card(replace(info, rank=files.info.rank)))
            self._publish(stage, info.name, replace_existing)
        return self.get(info.name)

    def remove(self, name: str) -> None:
        """Delete an adapter, sound or damaged; `NotFoundError` if there is none of this name."""
        if name not in self.names():
            self.get(name)  # raises, unless a killed writer's adapter came back just now
        with self._locked():
            self._discard(self._folder(name), keep=False)

    # ── inside ───────────────────────────────────────────────────────────────────────────────

    def _folder(self, name: str) -> Path:
        check_name(name)
        return self.root / (f"{name}_" if name.lower() in _DEVICES else name)

    def _infos(self) -> dict[str, AdapterInfo]:
        """Every sound adapter by name, through the index; only what changed is read again."""
        if not self.root.is_dir():
            return {}
        whole = True
        if os.path.isdir(self.root / ".trash"):
            try:
                with self._locked():
                    pass  # taking the lock puts right what a killed writer left
            except LibraryError as error:  # who may only read sees what there is
                log.warning("%s: a change there was not finished (%s)", self.root, error)
                whole = False
        index_file = self.root / ".index.json"
        try:
            index = json.loads(index_file.read_bytes())
        except (OSError, ValueError, RecursionError):
            index = {}  # only a cache: it is built again
        index = index if isinstance(index, dict) else {}
        fresh: dict[str, Any] = {}
        infos: dict[str, AdapterInfo] = {}
        for folder in sorted(os.scandir(self.root), key=lambda entry: entry.name):
            if folder.name.startswith(".") or not folder.is_dir(follow_symlinks=False):
                continue
            state, entry = _state(folder.path), index.get(folder.name)
            info = _indexed(entry, state, folder.path)
            if info is None:
                try:
                    info = _read_entry(folder)
                except (AdaptersHubError, OSError) as error:
                    log.warning("left out of %s: %s", self.root, error)
                    continue
                entry = {"state": state, "info": info.to_json()}
            fresh[folder.name] = entry
            infos[info.name] = info
        if whole and os.path.isdir(self.root / ".trash"):
            return self._infos()  # a replacement began meanwhile: look again
        if fresh != index:
            self._save_index(index_file, fresh)
        return infos

    def _save_index(self, path: Path, index: dict[str, Any]) -> None:
        try:
            with atomic_write(path) as file:
                file.write(json.dumps(index, ensure_ascii=False, separators=(",", ":")).encode())
        except OSError as error:
            log.debug("no index in %s (%s): listing stays slow but right", self.root, error)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        from filelock import FileLock

        try:
            self.root.mkdir(parents=True, exist_ok=True)
            lock = FileLock(self.root / ".lock")
            lock.acquire()
        except OSError as error:
            raise LibraryError(f"cannot write to {self.root}: {error.strerror or error}") from error
        try:
            self._recover()
            yield
        except OSError as error:
            if isinstance(error, AdaptersHubError):
                raise
            raise LibraryError(f"cannot change {self.root}: {error.strerror or error}") from error
        finally:
            lock.release()

    def _recover(self) -> None:
        """Under the lock: bring back what a killed writer moved away, drop what it half wrote."""
        trash = self.root / ".trash"
        for place in (trash, self.root / ".tmp"):
            if place.is_symlink():
                place.unlink()
        for partial in self.root.glob("..index.json.*"):
            partial.unlink(missing_ok=True)
        if trash.is_dir():
            for old in trash.iterdir():
                folder_name, _, fate = old.name.rpartition("~")[0].rpartition("~")
                if fate == "keep" and not (self.root / folder_name).exists():
                    os.rename(old, self.root / folder_name)
            shutil.rmtree(trash)
        shutil.rmtree(self.root / ".tmp", ignore_errors=True)

    @contextmanager
    def _staging(self) -> Iterator[Path]:
        """A folder to fill; gone afterwards whatever happens, unless it was published."""
        stage = self.root / ".tmp" / uuid.uuid4().hex
        try:
            stage.mkdir(parents=True)
            yield stage
        except OSError as error:
            if isinstance(error, AdaptersHubError):
                raise
            what = "no space left" if error.errno == errno.ENOSPC else error.strerror or str(error)
            raise LibraryError(f"cannot write to {self.root}: {what}; nothing was added") from error
        finally:
            shutil.rmtree(self.root / ".tmp", ignore_errors=True)

    def _publish(self, stage: Path, name: str, replace_existing: bool) -> None:
        target = self._folder(name)
        if target.is_symlink() or (target.exists() and not target.is_dir()):
            raise LibraryError(f"{target} is in the way and is no adapter folder")
        if not target.exists():
            alike = [n for n in self.names() if n != name and n.casefold() == name.casefold()]
            if alike:
                raise LibraryError(
                    f"{self.root} has {alike[0]!r}, which differs from {name!r} only in case: some "
                    "file systems take them for one; choose another name"
                )
            os.rename(stage, target)
            return
        if not replace_existing:
            raise LibraryError(
                f"{self.root} already has {name!r}; remove it first, add under another name, "
                "or replace it (replace_existing=True, --replace)"
            )
        old = self._discard(target, keep=True)
        os.rename(stage, target)
        shutil.rmtree(old.parent)

    def _discard(self, folder: Path, keep: bool) -> Path:
        """Move a folder to the trash; ``keep`` brings it back should the writer die now."""
        trash = self.root / ".trash"
        trash.mkdir(exist_ok=True)
        old = trash / f"{folder.name}~{'keep' if keep else 'drop'}~{uuid.uuid4().hex}"
        os.rename(folder, old)
        if not keep:
            shutil.rmtree(trash)
        return old


def check_name(name: str) -> str:
    """The name, if it can be a folder and a blend's term; `AdapterNameError` otherwise."""
    name = unicodedata.normalize("NFC", name)
    sound = NAME.fullmatch(name) and len(name.encode()) <= _MAX_NAME and not name.isdigit()
    if not sound or name != _name_of(name):
        raise AdapterNameError(
            f"{name!r} cannot name an adapter: use letters, digits and _, joined by single '.' or "
            f"'-' (at most {_MAX_NAME} bytes, not digits alone), such as de, pt-BR or hotel.v2"
        )
    return name


def _state(folder: str) -> list[int]:
    """What must not have changed for an index entry to be true."""
    state = []
    for name in (WEIGHTS_FILE, CONFIG_FILE, CARD_FILE):
        try:
            stat = os.stat(os.path.join(folder, name))
            state += [stat.st_mtime_ns, stat.st_size]
        except OSError:
            if name != CARD_FILE:
                return []
    return state


def _name_of(folder_name: str) -> str:
    """An adapter's name from its folder's, which ends in _ where Windows reserves the name."""
    stem = folder_name.removesuffix("_")
    return stem if stem.lower() in _DEVICES else folder_name


def _indexed(entry: Any, state: list[int], path: str) -> AdapterInfo | None:
    """The adapter an index entry tells of; None if there is none, or it is out of date."""
    try:
        if state and entry["state"] == state:
            return AdapterInfo.from_json(entry["info"] | {"path": path})
    except (KeyError, TypeError, ValueError):
        pass  # not an entry that this version wrote
    return None


def _read_entry(folder: os.DirEntry[str]) -> AdapterInfo:
    files = read_adapter(folder.path, check_name(_name_of(folder.name)))
    if METADATA_KEY in files.header.metadata:
        return files.info
    return with_card(files.info, Path(folder.path))


def _write(path: Path, text: str) -> None:
    with open(path, "x", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
