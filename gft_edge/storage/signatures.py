"""Detached Ed25519 signatures of files, by the package ``cryptography``; keys are made with openssl."""

from __future__ import annotations

import shlex
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from gft_edge.errors import ArtifactError, ConfigError, MissingExtraError

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

SIZE = 64
"""Bytes of a signature (RFC 8032)."""
_HOW = {
    "private": "openssl genpkey -algorithm ed25519 -out key.pem",
    "public": "openssl pkey -in key.pem -pubout -out public.pem",
}


def private_key(path: Path) -> Ed25519PrivateKey:
    """Reads a private key in PEM.

    Raises:
        ConfigError: missing, with a passphrase, or of another kind.
        MissingExtraError: cryptography is not installed.
    """
    key: Ed25519PrivateKey = _key(path, "private")
    return key


def public_key(path: Path) -> Ed25519PublicKey:
    """Reads a public key in PEM.

    Raises:
        ConfigError: missing, or of another kind.
        MissingExtraError: cryptography is not installed.
    """
    key: Ed25519PublicKey = _key(path, "public")
    return key


def write_signature(file: Path, signature: Path, key: Ed25519PrivateKey) -> None:
    """Signs the bytes of a file."""
    signature.write_bytes(key.sign(file.read_bytes()))


def require_signature(file: Path, signature: Path, key: Ed25519PublicKey) -> None:
    """Checks the signature of a file.

    Raises:
        ArtifactError: missing, of another size, or not made by this key for this content.
    """
    from cryptography.exceptions import InvalidSignature

    if not signature.is_file():
        raise ArtifactError(f"signature {signature}: is missing; the file that it should sign is not trusted")
    data = signature.read_bytes()[: SIZE + 1]
    try:
        if len(data) != SIZE:
            raise InvalidSignature
        key.verify(data, file.read_bytes())
    except InvalidSignature:
        raise ArtifactError(
            f"signature {signature}: was not made with this key for this {file.name}; ask its maker, or give the right key"
        ) from None


def _key(path: Path, kind: str) -> Any:
    serialization = _serialization()
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ConfigError(f"key {path}: cannot be read ({error.strerror})") from None
    try:
        if kind == "private":
            key: Any = serialization.load_pem_private_key(data, password=None)
        else:
            key = serialization.load_pem_public_key(data)
    except TypeError:  # cryptography's way to say that a passphrase is needed
        raise ConfigError(
            f"key {path}: has a passphrase; write one without: openssl pkey -in {shlex.quote(str(path))} -out KEY.pem"
        ) from None
    except Exception as error:  # ValueError, UnsupportedAlgorithm and errors of OpenSSL
        if kind == "public" and b"PRIVATE KEY" in data:
            problem = f"is a private key; give its public part: {_HOW['public']}"
        elif kind == "private" and b"PUBLIC KEY" in data:
            problem = "is a public key; signing needs the private one"
        else:
            problem = f"is no {kind} key in PEM ({' '.join(str(error).split())[:80]}); make one: {_HOW[kind]}"
        raise ConfigError(f"key {path}: {problem}") from None
    if not type(key).__name__.startswith("Ed25519"):
        algorithm = type(key).__name__.removesuffix("PrivateKey").removesuffix("PublicKey")
        raise ConfigError(f"key {path}: is of the kind {algorithm}, not Ed25519; make one: {_HOW['private']}")
    return key


def _serialization() -> ModuleType:
    try:
        from cryptography.hazmat.primitives import serialization
    except ImportError:
        raise MissingExtraError("cryptography", "sign", "which makes and checks signatures") from None
    return serialization
