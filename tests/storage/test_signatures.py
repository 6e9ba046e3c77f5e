"""Signatures by keys of openssl; every other key and every change is refused in one line."""

from __future__ import annotations

import shutil
import subprocess

import pytest

from gft_edge.errors import ArtifactError, ConfigError, MissingExtraError
from gft_edge.storage.signatures import private_key, public_key, require_signature, write_signature

pytest.importorskip("cryptography")
pytestmark = pytest.mark.skipif(shutil.which("openssl") is None, reason="keys are made with openssl")


@pytest.fixture(scope="module")
def keys(tmp_path_factory):
    """Keys of several kinds, by the commands of the docs."""
    root = tmp_path_factory.mktemp("keys")
    for command in (
        "genpkey -algorithm ed25519 -out key.pem",
        "pkey -in key.pem -pubout -out public.pem",
        "genpkey -algorithm ed25519 -out other.pem",
        "pkey -in other.pem -pubout -out other-public.pem",
        "genpkey -algorithm ed25519 -aes256 -pass pass:x -out locked.pem",
        "genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256 -out ec.pem",
        "pkey -in ec.pem -pubout -out ec-public.pem",
    ):
        subprocess.run(["openssl", *command.split()], cwd=root, check=True, capture_output=True)
    (root / "text.pem").write_text("hello")
    return root


def test_signature_is_of_the_bytes_and_of_the_key(keys, tmp_path):
    file, signature = tmp_path / "bundle.json", tmp_path / "bundle.sig"
    file.write_text("{}")
    write_signature(file, signature, private_key(keys / "key.pem"))
    assert signature.stat().st_size == 64
    require_signature(file, signature, public_key(keys / "public.pem"))
    with pytest.raises(ArtifactError, match="was not made with this key for this bundle.json"):
        require_signature(file, signature, public_key(keys / "other-public.pem"))
    whole = signature.read_bytes()
    for wrong in (b"", whole[:-1], whole + b"0", bytes([whole[0] ^ 1]) + whole[1:]):
        signature.write_bytes(wrong)
        with pytest.raises(ArtifactError, match="was not made with this key"):
            require_signature(file, signature, public_key(keys / "public.pem"))
    signature.write_bytes(whole)
    file.write_text("{} ")
    with pytest.raises(ArtifactError, match="was not made with this key"):
        require_signature(file, signature, public_key(keys / "public.pem"))
    signature.unlink()
    with pytest.raises(ArtifactError, match="bundle.sig: is missing"):
        require_signature(file, signature, public_key(keys / "public.pem"))


@pytest.mark.parametrize(
    ("read", "name", "reason"),
    [
        (private_key, "locked.pem", "has a passphrase; write one without: openssl pkey"),
        (private_key, "ec.pem", "is of the kind EC, not Ed25519"),
        (public_key, "ec-public.pem", "not Ed25519; make one: openssl genpkey"),
        (private_key, "public.pem", "is a public key; signing needs the private one"),
        (public_key, "key.pem", "is a private key; give its public part: openssl pkey"),
        (private_key, "text.pem", "is no private key in PEM .*; make one: openssl genpkey -algorithm ed25519"),
        (public_key, "text.pem", "is no public key in PEM"),
        (private_key, "missing.pem", "cannot be read .No such file"),
        (public_key, "", "cannot be read .Is a directory"),
    ],
)
def test_other_keys_are_refused_in_one_line(keys, read, name, reason):
    with pytest.raises(ConfigError, match=reason) as caught:
        read(keys / name)
    assert "\n" not in str(caught.value)


def test_missing_package_names_its_extra(keys, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "cryptography.hazmat.primitives", None)
    with pytest.raises(MissingExtraError, match=r"cryptography, .* pip install 'gft-edge\[sign\]'"):
        private_key(keys / "key.pem")
