"""Where the bank's master key comes from: a key file, a passphrase, or whatever a caller plugs in.

The master key is 32 bytes and never lies inside the bank. Losing it loses the bank.
"""

import hashlib
import os
import stat
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol, runtime_checkable

from mnemos.errors import BankKeyError
from mnemos.store.crypto import KEY_BYTES, new_key
from mnemos.store.disk import fsync_dir, make_folder, zero_and_unlink

_SCRYPT_N, _SCRYPT_R, _SCRYPT_P = 1 << 16, 8, 1  # 64 MiB of memory, about 0.2 s
_MAX_SCRYPT_BYTES = 128 << 20
PASSPHRASE_VARIABLE = "MNEMOS_PASSPHRASE"

LockKind = Literal["file", "passphrase", "custom"]


@dataclass(frozen=True, slots=True)
class Binding:
    """What a bank's catalog says of its lock. Nothing of it is secret."""

    bank_id: str
    kind: LockKind | None = None  # None where the bank was made before this was noted
    salt: bytes = b""  # of a passphrase; new with each rekey


class KeyProvider(Protocol):
    """Gives the master key. A provider for a key-management service has these three methods."""

    def load(self) -> bytes:
        """The 32-byte key of an existing bank. Raises BankKeyError saying what to do."""
        ...

    def create(self) -> bytes:
        """The 32-byte key for a new bank, kept wherever `load` finds it again."""
        ...

    def describe(self) -> str:
        """Where the key is, for people: never the key itself."""
        ...


@runtime_checkable
class BankBound(Protocol):
    """A provider whose key depends on the bank: it is bound to the bank before it is asked."""

    def bind(self, bank: Binding) -> KeyProvider: ...


class KeyFile:
    """A file of 32 bytes in hexadecimal, readable by its owner only."""

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)

    def load(self) -> bytes:
        try:
            fd = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            raise BankKeyError(
                f"The bank's key file {self.path} is missing. Put it back from your backup; without it the "
                "bank can't be read."
            ) from None
        except OSError as error:
            raise BankKeyError(
                f"The key file {self.path} can't be read: {os.strerror(error.errno or 0)}."
            ) from None
        with os.fdopen(fd, "rb") as file:
            mode = stat.S_IMODE(os.fstat(fd).st_mode)
            if mode & 0o077:
                raise BankKeyError(
                    f"The key file {self.path} can be read by others (mode {mode:04o}). Run `chmod 600` on "
                    "it."
                )
            content = file.read(256)
        try:
            key = bytes.fromhex(content.decode("ascii").strip())
        except (UnicodeDecodeError, ValueError):
            key = b""
        if len(key) != KEY_BYTES:
            raise BankKeyError(
                f"The key file {self.path} does not hold a key. Put the right one back from your backup."
            )
        return key

    def create(self) -> bytes:
        """A new key, or the one that is already in the file."""
        if self.path.exists():
            key = self.load()
            fsync_dir(self.path.parent)  # whoever made it may have been killed before this
            return key
        make_folder(self.path.parent)
        key = new_key()
        self.write(key)
        return key

    def write(self, key: bytes) -> None:
        """Puts a key into the file; durable."""
        part = self.path.with_name(f"{self.path.name}.{os.getpid()}.part")
        fd = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with os.fdopen(fd, "wb") as file:
            file.write(key.hex().encode("ascii") + b"\n")
            file.flush()
            os.fsync(fd)
        part.replace(self.path)
        fsync_dir(self.path.parent)

    @property
    def successor(self) -> "KeyFile":
        """Where the next key waits, until this file's own has been destroyed."""
        return KeyFile(self.path.with_name(self.path.name + ".next"))

    def adopt_successor(self) -> None:
        """Overwrites this file's key and puts the successor's in its place; nothing where none waits."""
        if not self.successor.path.exists():
            return
        if self.path.exists():
            zero_and_unlink(self.path)
        self.successor.path.replace(self.path)
        fsync_dir(self.path.parent)

    def describe(self) -> str:
        return str(self.path)


class Passphrase:
    """A key made from a passphrase by scrypt (RFC 7914), salted with the bank's random id and salt."""

    def __init__(self, passphrase: str) -> None:
        if not passphrase:
            raise BankKeyError("The passphrase is empty. Give one of several words.")
        self._passphrase = passphrase

    def bind(self, bank: Binding) -> KeyProvider:
        return _BoundPassphrase(self._passphrase, bank)

    def load(self) -> bytes:
        raise BankKeyError("A passphrase needs the bank it opens; hand it to Store.open.")

    create = load

    def describe(self) -> str:
        return "passphrase"


class _BoundPassphrase:
    def __init__(self, passphrase: str, bank: Binding) -> None:
        self._passphrase, self._bank = passphrase, bank

    def load(self) -> bytes:
        return hashlib.scrypt(
            self._passphrase.encode("utf-8", "surrogateescape"),
            salt=b"mnemos/bank/" + self._bank.bank_id.encode("ascii") + self._bank.salt,
            n=_SCRYPT_N,
            r=_SCRYPT_R,
            p=_SCRYPT_P,
            maxmem=_MAX_SCRYPT_BYTES,
            dklen=KEY_BYTES,
        )

    create = load

    def describe(self) -> str:
        return "passphrase"


class _PassphraseMissing:
    def load(self) -> bytes:
        raise BankKeyError(
            f"The bank is locked by a passphrase and none was given. Set {PASSPHRASE_VARIABLE}, or run the "
            "command on a terminal, where it asks."
        )

    create = load

    def describe(self) -> str:
        return "passphrase"


class _DefaultKeys:
    """A key file in the platform's configuration directory, or a passphrase: as the bank is locked."""

    def __init__(self, ask: Callable[[], str] | None) -> None:
        self._ask = ask

    def bind(self, bank: Binding) -> KeyProvider:
        file = KeyFile(key_directory() / f"{bank.bank_id}.key")
        passphrase = os.environ.get(PASSPHRASE_VARIABLE)
        if bank.kind == "file":
            return file
        if passphrase:
            return Passphrase(passphrase).bind(bank)
        if bank.kind != "passphrase":
            return file
        return _PassphraseMissing() if self._ask is None else Passphrase(self._ask()).bind(bank)

    def load(self) -> bytes:
        raise BankKeyError("The default key belongs to one bank; hand it to Store.open.")

    create = load

    def describe(self) -> str:
        return "default"


def default_keys(ask: Callable[[], str] | None = None) -> KeyProvider:
    """MNEMOS_PASSPHRASE or a key file. `ask` is called for the passphrase of a bank that wants one."""
    return _DefaultKeys(ask)


def kind_of(provider: KeyProvider) -> LockKind:
    """How a bank is locked whose key comes from this (bound) provider."""
    if isinstance(provider, KeyFile):
        return "file"
    return "passphrase" if isinstance(provider, _BoundPassphrase | _PassphraseMissing) else "custom"


def bound(keys: KeyProvider, bank: Binding) -> KeyProvider:
    return keys.bind(bank) if isinstance(keys, BankBound) else keys


def check_outside(bank: Path, provider: KeyProvider) -> None:
    """BankKeyError for a key file inside the bank it opens."""
    if isinstance(provider, KeyFile) and provider.path.resolve().is_relative_to(bank.resolve()):
        raise BankKeyError(
            f"The key file {provider.path} lies inside the bank that it opens, where every copy of the bank "
            "takes it along. Name a place outside."
        )


def key_directory() -> Path:
    """Where key files are kept: MNEMOS_KEY_DIR, or the platform's configuration directory."""
    named = os.environ.get("MNEMOS_KEY_DIR")
    if named:
        return Path(named)
    from platformdirs import user_config_path

    return user_config_path("mnemos") / "keys"
