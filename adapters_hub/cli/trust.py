"""Commands on adapters from elsewhere: sign, doctor, import. None of them needs torch."""

import argparse
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

from adapters_hub.cli.base import DeclareCommand, declare_json, place_of, print_json
from adapters_hub.errors import LibraryError, SettingsError
from adapters_hub.library.library import Library
from adapters_hub.library.remote.address import address_of, is_remote
from adapters_hub.library.remote.transfer import adapter_at


def declare(command: DeclareCommand) -> None:
    """The commands of this group and their arguments."""
    sub = command("sign", _sign, "sign adapters' files, with Sigstore's model-signing, offline")
    sub.add_argument("adapters", nargs="*", help="names of the library, folders, .safetensors")
    sub.add_argument("--key", help="private elliptic key, PEM")
    sub.add_argument("--new-key", metavar="NAME", help="make NAME.pem and NAME.pub first")

    sub = command("doctor", _doctor, "look at strangers' adapters without running anything")
    sub.add_argument("adapters", nargs="+", help="folders (of one or many), files, names, hf://…")
    declare_json(sub, "JSON Lines, one for each adapter")
    sub.add_argument("--strict", action="store_true", help="exit with 1 for warnings, too")

    sub = command("import", _import, "add a folder of PEFT adapters, as the Hub has them")
    sub.add_argument("source", help="a folder with an adapter, or adapters in subfolders")
    sub.add_argument(
        "--convert-pickle",
        action="store_true",
        help="make safetensors of adapter_model.bin, in a process that has no network",
    )
    for flag in ("language", "domain", "task", "backbone", "license"):
        sub.add_argument(f"--{flag}", help="of all of them")
    sub.add_argument("--replace", action="store_true", help="replace those of the same names")
    declare_json(sub, "JSON Lines, one for each adapter")


def _sign(options: argparse.Namespace) -> int:
    from adapters_hub.sharing.signing import new_key, sign

    key = options.key
    if options.new_key:
        private, public = new_key(options.new_key)
        print(f"made {private}, which is private, and {public}, for those who verify")
        key = key or private
    elif not options.adapters:
        raise SettingsError("sign what? Give adapters, or --new-key NAME")
    if key is None:
        raise SettingsError("sign with which key? Give --key PRIVATE_KEY, or --new-key NAME")
    library = Library(options.library)
    if library.bundled and set(options.adapters) & set(library.names()):
        raise LibraryError(f"{library.root}: what ships is never changed; sign a copy of it")
    for adapter in options.adapters:
        path = place_of(adapter, options.library)
        print(f"signed {path}: {sign(path, Path(key))}")
    return 0


def _doctor(options: argparse.Namespace) -> int:
    from adapters_hub.sharing.adapter_folders import find_adapters
    from adapters_hub.sharing.doctor import examine

    bad = 0
    for named in options.adapters:
        with _here(named, options.library) as place:
            for path in find_adapters(place) or [place]:
                report = examine(path)
                if options.json:
                    print_json(report.to_json())
                else:
                    print(report)
                bad += bool(report.of("error") or (options.strict and report.of("warning")))
    return 1 if bad else 0


def _here(adapter: str, library: str | None) -> AbstractContextManager[Path]:
    """An adapter's place for the ``with`` block; what is elsewhere is fetched, as pull would."""
    if is_remote(adapter):
        return adapter_at(address_of(adapter)).fetched()
    return nullcontext(place_of(adapter, library))


def _import(options: argparse.Namespace) -> int:
    from adapters_hub.sharing.importing import import_adapters

    rows = []
    for row in import_adapters(
        Library(options.library),
        Path(options.source),
        convert=options.convert_pickle,
        replace_existing=options.replace,
        language=options.language,
        domain=options.domain,
        task=options.task,
        backbone=options.backbone,
        license=options.license,
    ):
        rows.append(row)
        if options.json:
            print_json(row.to_json())
        else:
            print(row, flush=True)
    refused = sum(row.status == "refused" for row in rows)
    added = sum(row.status == "added" for row in rows)
    if not options.json:
        print(f"{added} added, {refused} refused, {len(rows) - added - refused} left out")
    return 1 if refused or not added else 0
