"""Signatures: written by model-signing, read by us, and the other way; what changed is named."""

import base64
import json
import os

import pytest
from helpers import CONFIG, WEIGHTS, lora_config, lora_tensors, run_python, write_peft_folder
from safetensors.numpy import load_file, save_file

from adapters_hub.cli import main
from adapters_hub.errors import AdapterFileError, SettingsError, SignatureError
from adapters_hub.library.library import Library
from adapters_hub.library.signatures import check_signed, read_public_key, read_signature
from adapters_hub.sharing.signing import DETAILS_FILE, new_key, sign, verify

pytest.importorskip("model_signing.signing")

CARD = "---\nlanguage: de\nlicense: mit\n---\n# de\n"


@pytest.fixture(scope="module")
def keys(tmp_path_factory):
    """Name → (private, public)."""
    root = tmp_path_factory.mktemp("keys")
    return {name: new_key(root / name) for name in ("ops", "partner", "stranger")}


@pytest.fixture
def signed(tmp_path, keys):
    folder = write_peft_folder(tmp_path / "de", card=CARD)
    sign(folder, keys["ops"][0])
    return folder


def test_a_signature_is_of_every_file(signed, keys):
    found = verify(signed, [keys["partner"][1], keys["ops"][1]])
    assert not found.difference
    assert "as ops.pub (" in str(found)
    _, files = read_signature(signed, [read_public_key(keys["ops"][1])])
    assert set(files) == {WEIGHTS, CONFIG, "README.md", DETAILS_FILE}


def test_model_signing_agrees(signed, keys, tmp_path):
    from model_signing import hashing, signing, verifying

    def theirs(folder):
        config = verifying.Config().use_elliptic_key_verifier(public_key=keys["ops"][1])
        config.verify(folder, folder / "model.sig")

    theirs(signed)
    (signed / "README.md").write_text("other")
    with pytest.raises(ValueError, match="mismatch"):
        theirs(signed)
    other = write_peft_folder(tmp_path / "theirs", card=CARD)
    how = hashing.Config().set_ignored_paths(paths=["model.sig"])
    signer = signing.Config().use_elliptic_key_signer(private_key=keys["ops"][0])
    signer.set_hashing_config(how).sign(other, other / "model.sig")
    assert not verify(other, [keys["ops"][1]]).difference
    (other / CONFIG).write_text("{}")
    found = verify(other, [keys["ops"][1]])
    assert (found.difference.changed, found.details) == ((CONFIG,), ())


def test_what_a_signer_left_out_is_not_covered(tmp_path, keys):
    """model-signing lets a signature say which paths to leave out; then they are no signed ones."""
    from model_signing import hashing, signing

    folder = write_peft_folder(tmp_path / "de")
    how = hashing.Config().set_ignored_paths(paths=["model.sig", WEIGHTS])
    signer = signing.Config().use_elliptic_key_signer(private_key=keys["ops"][0])
    signer.set_hashing_config(how).sign(folder, folder / "model.sig")
    assert verify(folder, [keys["ops"][1]]).difference.added == (WEIGHTS,)


def test_a_difference_is_named_down_to_tensors_and_fields(signed, keys):
    tensors = load_file(signed / WEIGHTS)
    first, second, *_ = sorted(tensors)
    tensors[first][0, 0] += 1
    tensors["extra"] = tensors.pop(second)
    save_file(tensors, signed / WEIGHTS, {"note": "x"})
    (signed / CONFIG).write_text(json.dumps(lora_config(lora_alpha=64, use_dora=True)))
    (signed / "README.md").write_text(CARD.replace("mit", "gpl-3.0"))
    (signed / "extra.py").write_text("print()")
    found = verify(signed, [keys["ops"][1]])
    assert found.difference.changed == ("README.md", CONFIG, WEIGHTS)
    assert found.difference.added == ("extra.py",)
    assert found.details == (
        f"tensor changed: {first}",
        f"tensor missing: {second}",
        "tensor added: extra",
        "metadata added: note",
        f"{CONFIG} changed: lora_alpha: 4 → 64",
        f"{CONFIG} added: use_dora",
        "README.md: -license: mit",
        "README.md: +license: gpl-3.0",
    )
    (signed / WEIGHTS).unlink()
    assert verify(signed, [keys["ops"][1]]).difference.missing == (WEIGHTS,)


def test_details_that_were_changed_are_not_believed(signed, keys):
    details = json.loads((signed / DETAILS_FILE).read_text())
    details["config"]["r"] = 3
    (signed / DETAILS_FILE).write_text(json.dumps(details))
    (signed / CONFIG).write_text(json.dumps(lora_config(r=3)))
    found = verify(signed, [keys["ops"][1]])
    assert found.difference.changed == (CONFIG, DETAILS_FILE)
    assert found.details == ()


def test_another_key_and_no_signature(signed, keys, tmp_path):
    with pytest.raises(SignatureError, match=r"signed with another key .*wanted: stranger.pub"):
        verify(signed, [keys["stranger"][1]])
    with pytest.raises(SignatureError, match="unsigned"):
        verify(write_peft_folder(tmp_path / "bare"), [keys["ops"][1]])
    sign(signed, keys["stranger"][0])
    with pytest.raises(SignatureError, match="another key"):
        verify(signed, [keys["ops"][1]])
    assert not verify(signed, [keys["stranger"][1]]).difference


def tampered(bundle, replaced=None, **changes):
    bundle = json.loads(json.dumps(bundle))
    if replaced:
        text = base64.b64decode(bundle["dsseEnvelope"]["payload"]).decode()
        changes["payload"] = base64.b64encode(text.replace(*replaced).encode()).decode()
    bundle["dsseEnvelope"].update(changes)
    return json.dumps(bundle)


def test_hostile_signatures(signed, keys):
    place, key = signed / "model.sig", read_public_key(keys["ops"][1])
    sound = json.loads(place.read_text())
    digest = read_signature(signed, [key])[1][CONFIG]
    attacks = [
        "", "{", "[]", "null", "[" * 100_000, "\xff", json.dumps({**sound, "mediaType": 5}),
        json.dumps({**sound, "verificationMaterial": {"certificate": {}}}),
        tampered(sound, replaced=(digest, "0" * 64)), tampered(sound, replaced=(CONFIG, "x.json")),
        tampered(sound, signatures=[]), tampered(sound, signatures=[{"sig": "AAAA"}]),
        tampered(sound, signatures=sound["dsseEnvelope"]["signatures"] * 2),
        tampered(sound, payloadType="text/plain"), tampered(sound, payload="ä"),
        tampered(sound, payload="!!!"),
    ]  # fmt: skip
    for attack in attacks:
        place.write_text(attack, encoding="utf-8")
        with pytest.raises(SignatureError):
            check_signed(signed, [key])
    place.write_text(json.dumps(sound))
    assert check_signed(signed, [key])


def test_keys_that_are_none(tmp_path, keys, signed):
    (tmp_path / "junk").write_text("junk")
    for path, what in ((tmp_path / "junk", "PEM"), (tmp_path / "none", "No such file"),
                       (keys["ops"][0], "this is a private key")):  # fmt: skip
        with pytest.raises(SettingsError, match=what):
            read_public_key(path)
    for path in (tmp_path / "junk", tmp_path / "none", keys["ops"][1]):
        with pytest.raises(SettingsError, match="cannot sign with it"):
            sign(signed, path)
    with pytest.raises(SettingsError, match="never replaced"):
        new_key(str(keys["ops"][0])[: -len(".pem")])
    assert not os.stat(keys["ops"][0]).st_mode & 0o077


def test_a_key_with_a_password(tmp_path, signed, monkeypatch):
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.serialization import (
        BestAvailableEncryption,
        Encoding,
        PrivateFormat,
        PublicFormat,
    )  # fmt: skip

    key = ec.generate_private_key(ec.SECP384R1())
    (tmp_path / "locked.pem").write_bytes(
        key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"secret"))
    )
    (tmp_path / "locked.pub").write_bytes(
        key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    )
    with pytest.raises(SettingsError, match="ADAPTERS_HUB_KEY_PASSWORD"):
        sign(signed, tmp_path / "locked.pem")
    monkeypatch.setenv("ADAPTERS_HUB_KEY_PASSWORD", "secret")
    sign(signed, tmp_path / "locked.pem")
    assert not verify(signed, [tmp_path / "locked.pub"]).difference


def test_a_lone_file(tmp_path, keys):
    lone = tmp_path / "sw.safetensors"
    save_file(lora_tensors(), lone)
    assert sign(lone, keys["ops"][0]).name == "sw.safetensors.sig"
    assert not verify(lone, [keys["ops"][1]]).difference
    save_file(lora_tensors(seed=1), lone)
    assert verify(lone, [keys["ops"][1]]).difference.changed == (".",)


def test_the_commands(tmp_path, keys, capsys):
    library = Library(tmp_path / "library")
    library.add(write_peft_folder(tmp_path / "source", card=CARD))
    where = ["--library", str(library.root)]
    assert main(["sign", *where, "--new-key", str(tmp_path / "mine"), "de"]) == 0
    assert main(["verify", *where]) == 0
    assert main(["verify", *where, "--key", str(tmp_path / "mine.pub")]) == 0
    assert "de: as mine.pub" in capsys.readouterr().out
    (library.root / "de" / CONFIG).write_text(json.dumps(lora_config(r=3)))
    assert main(["verify", str(library.root / "de"), "--key", str(tmp_path / "mine.pub")]) == 1
    assert f"{CONFIG} changed: r: 2 → 3" in capsys.readouterr().out
    assert main(["verify", *where, "de", "--key", str(keys["ops"][1])]) == 1
    assert main(["verify", *where, "hotel", "--key", str(keys["ops"][1])]) == 1
    assert main(["sign", *where, "de"]) == 1
    assert main(["sign", *where]) == 1


def test_without_torch(signed, keys):
    run_python(
        "import sys; from adapters_hub.sharing.signing import sign, verify\n"
        "sign(sys.argv[1], sys.argv[2]); assert not verify(sys.argv[1], [sys.argv[3]]).difference\n"
        "assert not {'torch', 'transformers'} & set(sys.modules)",
        signed, *keys["ops"],
    )  # fmt: skip


def test_a_folder_that_is_no_adapter(tmp_path, keys):
    with pytest.raises(SignatureError, match="no such folder"):
        sign(tmp_path / "none", keys["ops"][0])
    with pytest.raises(AdapterFileError):
        Library(tmp_path / "library").add(tmp_path)
