"""The library: a folder of adapters, listed, looked up by language or domain, changed atomically.

    <library>/<name>/adapter_config.json, adapter_model.safetensors, README.md
    <library>/.index.json     a cache of what the headers say; safe to delete

Knows files and names; never imports torch. How the folder changes is `folder`'s to know.
"""

import json
import logging
import os
import shutil
import unicodedata
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

from adapters_hub.errors import (
    AdaptersHubError,
    BackboneMismatchError,
    LibraryError,
    NotFoundError,
    SettingsError,
    SignatureError,
)
from adapters_hub.library import languages, lookup, paths, proxies
from adapters_hub.library import safetensors_file as tensorfile
from adapters_hub.library.adapter_file import (
    CONFIG_FILE,
    METADATA_KEY,
    PROBLEM_TYPES,
    AdapterFiles,
    AdapterInfo,
    differing,
    plain_config,
    read_adapter,
)
from adapters_hub.library.atomic import new_folder
from adapters_hub.library.blend import Blend
from adapters_hub.library.checks import (
    check_fit,
    check_labels,
    check_pooler,
    local_fingerprint,
    missing_modules,
    warn_of_tokenizer,
    with_card,
)
from adapters_hub.library.exchange import Exchange
from adapters_hub.library.fingerprint import belongs
from adapters_hub.library.folder import LibraryFolder, check_name
from adapters_hub.library.index import Index, stamp
from adapters_hub.library.lookup import Resolution
from adapters_hub.library.origin import Origin
from adapters_hub.library.pair_weight import PairWeight
from adapters_hub.library.remote.address import is_remote
from adapters_hub.library.signatures import is_signed
from adapters_hub.library.signed_copy import copy_signed
from adapters_hub.library.trust import Gate
from adapters_hub.library.writing import write_adapter

log = logging.getLogger(__name__)

_Infos = list[AdapterInfo]  # inside the class, `list` is the method
_Lines = list[str]


class Library(Exchange):
    """A folder of adapters.

    ``Library()`` is ``$ADAPTERS_HUB_LIBRARY``, else ``./adapters``, else the bundled adapters for
    the starter backbone. A folder that does not exist yet is an empty library. What is bundled is
    never changed: the first `add` makes ``./adapters``, a copy of it, and goes on there.
    """

    def __init__(self, root: str | os.PathLike[str] | None = None) -> None:
        self._default = root is None
        self._open(Path(root).expanduser() if root is not None else paths.default_root())

    def _open(self, root: Path) -> None:
        self.root = root
        self.folder = LibraryFolder(root)
        self.bundled = paths.is_bundled(root, by_default=self._default)
        self._index = Index(root)
        self._gate = Gate(root)
        if root.exists() and not root.is_dir():
            raise LibraryError(f"{root} is a file, not a folder of adapters")

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
        return self.folder.names()

    def state(self) -> tuple[int, ...] | None:
        """What differs whenever an adapter was added, replaced or removed; None for no folder."""
        return self.folder.state()

    def stamp(self, name: str) -> tuple[int, ...]:
        """The times and sizes of an adapter's files; empty if there is none."""
        return tuple(stamp(str(self.folder.place(name))))

    def get(self, name: str) -> AdapterInfo:
        """The adapter of exactly this name; `NotFoundError` with the nearest names otherwise."""
        infos, name = self._infos(), unicodedata.normalize("NFC", name)
        if name not in infos:
            self.explain(name)
            raise NotFoundError(lookup.missing(name, infos.values(), self._where()))
        return infos[name]

    def read(self, name: str) -> AdapterFiles:
        """The adapter's checked files, for the code that loads the numbers; as `open`."""
        return self.open(self.get(name))

    def open(self, info: AdapterInfo) -> AdapterFiles:
        """The checked files of an adapter of the list: every load of one comes through here.

        Raises `AdapterFileError` if they are damaged, and `SignatureError` if they are not signed
        as the library's ``trust.yaml`` demands (see `trust`).
        """
        folder = self.folder.place(info.name)
        self._gate.check(info.name, folder)
        files = read_adapter(folder, info.name)
        self._gate.unchanged(info.name, folder)
        return files

    def resolve(self, language: str, max_distance: int = languages.MAX_DISTANCE) -> Resolution:
        """The language adapter for a language: the exact one, else the closest one there is.

        A fallback is never silent: it is logged, and ``reason`` and ``distance`` say what was
        taken. Raises `NotFoundError` if nothing is within ``max_distance`` (CLDR's distance).
        """
        infos = self._infos()
        if language not in infos:
            self.explain(language)
        return lookup.resolve(language, [*infos.values()], max_distance, self._where())

    def proxy(
        self,
        language: str,
        *,
        distance: str = proxies.SOURCE,
        temperature: float = proxies.TEMPERATURE,
        most: int = proxies.MOST,
        without: Iterable[str] = (),
        fingerprint: str | None = None,
    ) -> proxies.Proxy:
        """A blend of the adapters of languages near to one that has none, and the reason for it.

        Weights are a softmax of the negative distances over ``temperature``, over ``most``
        languages (arXiv:2601.16629). ``distance`` is ``family`` (a tree of languages, and scripts),
        ``cldr`` or ``uriel`` (needs the extra of this name). ``without`` leaves languages out.
        Raises `NotFoundError` where no language is related to it, `LanguageError`.
        """
        infos = self.list(fingerprint=fingerprint)
        return proxies.proxy(
            language,
            infos,
            self._where(),
            distance=distance,
            temperature=temperature,
            most=most,
            without=[*without],
        )

    def expand(self, blend: Blend, fingerprint: str | None = None) -> Blend:
        """A blend with adapters' names in the place of its ``proxy:`` terms; see `proxies`."""
        if not any(proxies.proxied(term) for term in blend.terms):
            return blend
        return proxies.expand(blend, self.list(fingerprint=fingerprint), self._where())

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
        return lookup.find(term, [*infos.values()], fingerprint, self._where())

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
        folder = self.folder.place(name)
        problems = []
        try:
            files = read_adapter(folder, name)
            self._gate.check(name, folder)
        except SignatureError as error:
            problems.append(str(error))
        except AdaptersHubError as error:
            return [str(error)]
        actual, bad = tensorfile.inspect(files.weights, files.header)
        if files.info.hash is None:
            problems.append("no content hash was stored")
        elif actual != files.info.hash:
            problems.append(f"the tensors changed: {actual}, stored {files.info.hash}")
        if bad:
            problems.append(f"{bad} holds NaN or infinity")
        if missing := missing_modules(files, files.info.backbone):
            problems.append(missing)
        stored = json.loads(files.header.metadata.get(METADATA_KEY, "{}")).get("lora")
        config = plain_config(files.spec.config)
        if isinstance(stored, dict) and (keys := differing(plain_config(stored), config)):
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
        origin: Origin | None = None,
    ) -> AdapterInfo:
        """Copy a PEFT LoRA folder, or a lone ``.safetensors`` of ours, into the library.

        What is not given is taken from the files, and ``domain=""`` drops theirs; plain PEFT's do
        not say the ``problem_type`` of a classification head, which is transformers'. The name
        defaults to the language and domain (``pt-BR``, ``hotel``, ``pt-BR-hotel``), else the
        source's name. ``backbone`` (a folder or ``starter``) stores that backbone's fingerprint.
        ``origin`` is what `pull` says of where the files are from.
        The files are checked, down to NaN, before anything is written; the library holds the old
        state or the new one, never between. Where ``trust.yaml`` demands a signature, the folder
        is copied as it is, signature included, and nothing but its name may be given.
        """
        asked = {
            key: value
            for key, value in (
                ("language", language), ("domain", domain), ("task", task), ("labels", labels),
                ("problem_type", problem_type), ("backbone", backbone), ("license", license),
            )
            if value is not None
        }  # fmt: skip
        if problem_type not in (None, *PROBLEM_TYPES):
            raise SettingsError(
                f"problem_type={problem_type!r}: choose one of {', '.join(PROBLEM_TYPES)}"
            )
        if is_remote(os.fspath(source)):
            raise SettingsError(
                f"{source} is not here: library.pull({str(source)!r}) adds it, or adapters-hub pull"
            )
        files = read_adapter(Path(source))
        info = files.info
        if METADATA_KEY not in files.header.metadata and Path(source).is_dir():
            info = with_card(info, Path(source))
        info = replace(
            info,
            language=info.language if language is None else languages.canonical(language),
            domain=(info.domain if domain is None else domain) or None,
            task=info.task if task is None else task,
            labels=(labels,) if isinstance(labels, str) else tuple(labels or ()) or info.labels,
            problem_type=info.problem_type if problem_type is None else problem_type,
            backbone=info.backbone if backbone is None else backbone,
            license=info.license if license is None else license,
        )
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
        check_pooler(files, info.task, info.backbone)
        check_labels(files, info.labels)
        default = "-".join(part for part in (info.language, info.domain) if part)
        stem = Path(source).name.removesuffix(".safetensors")
        info = replace(
            info,
            name=check_name(name or default or stem),
            fingerprint=info.fingerprint or fingerprint,
            origin=origin,  # what files say of theirs is not believed
        )
        warn_of_tokenizer(Path(source))
        self._leave_bundled()
        with self.folder.locked():
            if (keys := self._gate.keys(info.name)) is None:
                if is_signed(Path(source)):
                    log.warning(
                        "%s: added without its signature, for its files are written anew", source
                    )
                self._publish(files, info, replace_existing)
            else:
                if asked:
                    raise SettingsError(
                        f"{source}: {', '.join(asked)} would change files that are signed, as this "
                        "library demands; say it before they are signed"
                    )
                with self.folder.staging() as stage:
                    copy_signed(Path(source), stage, keys)
                    self.folder.publish(stage, info.name, replace_existing)
        return self.get(info.name)

    def keep_pair_weight(self, name: str, language: str, measured: PairWeight) -> AdapterInfo:
        """Write what was measured of a language adapter beside another into that one's files.

        ``language`` is the language adapter's name. Loading by language and domain uses it.
        """
        self._leave_bundled()
        self._gate.refuse_change(name, "a copy with another weight")
        with self.folder.locked():  # so that nobody replaces it between reading and writing
            files, info = self.read(name), self.get(name)
            pairs = {**info.pair_weights, self.get(language).name: measured}
            self._publish(files, replace(info, pair_weights=pairs), replace_existing=True)
        return self.get(name)

    def _publish(self, files: AdapterFiles, info: AdapterInfo, replace_existing: bool) -> None:
        """Under the lock: write an adapter's checked files, with what is known of it."""
        with self.folder.staging() as stage:
            write_adapter(files, info, stage)
            self.folder.publish(stage, info.name, replace_existing)

    def remove(self, name: str) -> None:
        """Delete an adapter, sound or damaged; `NotFoundError` if there is none of this name."""
        if name not in self.names():
            self.get(name)  # raises, unless a killed writer's adapter came back just now
        if self.bundled:
            raise LibraryError(_BUNDLED.format(self.root))
        with self.folder.locked():
            self.folder.discard(name)

    def check_writable(self, name: str | None = None) -> None:
        """Raise now for a library that `add` could not put anything into, or nothing of this name.

        `LibraryError`, or `SignatureError` where it would have to be signed.
        """
        if name is not None:
            self._gate.refuse_change(name, "what is trained")
        if self.bundled and not self._default:
            raise LibraryError(_BUNDLED.format(self.root))
        paths.check_writable(Path("adapters") if self.bundled else self.root)

    # ── inside ───────────────────────────────────────────────────────────────────────────────

    def _infos(self) -> dict[str, AdapterInfo]:
        """Every sound adapter by name; only what changed since the last look is read again."""
        whole = True
        if self.folder.unfinished and not self.bundled:
            try:
                with self.folder.locked():
                    pass  # taking the lock puts right what a killed writer left
            except LibraryError as error:  # who may only read sees what there is
                log.warning("%s: a change there was not finished (%s)", self.root, error)
                whole = False
        infos = self._index.look(self.folder.entries(), save=not self.bundled)
        if whole and self.folder.unfinished:
            return self._infos()  # a replacement began meanwhile: look again
        return infos

    def _where(self) -> str:
        """The library in an error's words."""
        return f"{self.root}" if self.root.is_dir() else f"{self.root} (there is no such folder)"

    def _leave_bundled(self) -> None:
        """Before an adapter is added: what ships is never changed; a copy of it here is.

        `Library()` goes on in a new ``./adapters``; one that was named is not exchanged.
        """
        if not self.bundled:
            return
        if not self._default:
            raise LibraryError(_BUNDLED.format(self.root))
        home = Path("adapters")
        if not home.exists():  # else it was made since this object was, and is somebody's library
            hidden = shutil.ignore_patterns(".*")
            try:
                with new_folder(home) as stage:
                    shutil.copytree(self.root, stage, ignore=hidden, dirs_exist_ok=True)
            except OSError as error:
                raise LibraryError(f"cannot make {home}: {error.strerror or error}") from error
            log.warning("made %s with a copy of the adapters that ship", home.absolute())
        self._open(home)


_BUNDLED = (
    "{}: these adapters ship with the package and are never changed; choose another folder "
    '(--library FOLDER, Library("FOLDER"))'
)
