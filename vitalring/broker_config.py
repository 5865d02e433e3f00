"""How to reach a broker: its address, and the files that a party shows it.

File contents never stand in an error, a log or a representation.
"""

import ssl
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated
from urllib.parse import urlsplit

from vitalring.errors import ConfigError
from vitalring.schema import Range

_PORTS = {"mqtt": 1883, "mqtts": 8883}
_LOOPBACK = ("localhost", "127.0.0.1", "::1")


@dataclass(frozen=True)
class BrokerConfig:
    """How to reach a broker.

    `url` is `mqtt://host:port` or `mqtts://host:port` (ports default to 1883 and 8883). With
    mqtts the server's certificate is always verified, against `ca_file` or the system's
    authorities. `reconnect_s` is the longest wait between two attempts to connect: short where
    rounds are short, long where many devices share a broker. `max_payload_bytes` bounds a
    message in both directions; larger payloads are chunked (SPEC 3.6).
    """

    url: str
    ca_file: Path | None = None
    certificate_file: Path | None = None
    key_file: Path | None = None
    username: str | None = field(default=None, repr=False)
    password_file: Path | None = None
    keepalive_s: Annotated[int, Range(5, 3600)] = 60
    reconnect_s: Annotated[float, Range(0.1, 3600.0)] = 120.0
    max_payload_bytes: Annotated[int, Range(256, 200_000_000)] = 2**20

    def __post_init__(self) -> None:
        """Refuse settings that cannot work together. Raises ConfigError."""
        # 1. The address. Credentials in it would end up in logs, so they are refused unshown.
        try:
            parts = urlsplit(self.url)
            port = parts.port
        except ValueError as error:
            raise ConfigError("url has no valid port: use mqtts://host:port") from error
        if "@" in parts.netloc:
            raise ConfigError("url holds credentials: use username and password_file")
        plain = not (parts.path.strip("/") or parts.query or parts.fragment)
        if parts.scheme not in _PORTS or not parts.hostname or port == 0 or not plain:
            raise ConfigError(f"url {self.url!r}: use mqtt://host:port or mqtts://host:port")
        # 2. TLS material only where TLS is.
        for name in ("ca_file", "certificate_file", "key_file"):
            if getattr(self, name) is not None and not self.tls:
                raise ConfigError(f"{name} is set but url is not mqtts://")
        if (self.certificate_file is None) != (self.key_file is None):
            missing = "certificate_file" if self.certificate_file is None else "key_file"
            raise ConfigError(f"{missing} is missing: a certificate and its key go together")
        # 3. A password never crosses a network unencrypted.
        if self.password_file is not None:
            if self.username is None:
                raise ConfigError("username is missing, password_file is set")
            if not self.tls and self.host not in _LOOPBACK:
                raise ConfigError("password_file needs an mqtts:// url: it would travel readable")
        # 4. Bounds.
        for name, low, high in (
            ("keepalive_s", 5, 3600),
            ("reconnect_s", 0.1, 3600),
            ("max_payload_bytes", 256, 200_000_000),
        ):
            if not low <= getattr(self, name) <= high:
                raise ConfigError(f"{name} is {getattr(self, name)}: use {low} to {high}")

    @property
    def tls(self) -> bool:
        """Whether the connection is encrypted."""
        return urlsplit(self.url).scheme == "mqtts"

    @property
    def host(self) -> str:
        """Host name or address."""
        return urlsplit(self.url).hostname or ""

    @property
    def port(self) -> int:
        """TCP port."""
        return urlsplit(self.url).port or _PORTS[urlsplit(self.url).scheme]

    def tls_context(self) -> ssl.SSLContext | None:
        """Return a context that verifies the server, or None without TLS. Raises ConfigError."""
        if not self.tls:
            return None
        try:
            context = ssl.create_default_context(cafile=self.ca_file)
        except OSError as error:
            raise _unusable("ca_file", self.ca_file, error) from None
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        if self.certificate_file is not None and self.key_file is not None:
            _check_private("key_file", self.key_file)
            try:
                # The callback keeps OpenSSL from asking a terminal for a passphrase.
                context.load_cert_chain(self.certificate_file, self.key_file, lambda: b"")
            except OSError as error:
                if not self.certificate_file.exists():
                    raise _unusable("certificate_file", self.certificate_file, error) from None
                raise ConfigError(
                    f"certificate_file {self.certificate_file} and key_file {self.key_file} "
                    f"cannot be used: {error.strerror or type(error).__name__}"
                ) from None
        return context

    def password(self) -> str | None:
        """Read the password, without the line end. Raises ConfigError."""
        if self.password_file is None:
            return None
        _check_private("password_file", self.password_file)
        try:
            return self.password_file.read_text("utf-8").rstrip("\r\n")
        except (OSError, UnicodeDecodeError):
            raise ConfigError(f"password_file {self.password_file} cannot be read") from None


def _check_private(name: str, path: Path) -> None:
    try:
        mode = path.stat().st_mode
    except OSError as error:
        raise _unusable(name, path, error) from None
    if mode & 0o077:
        raise ConfigError(f"{name} {path} can be read by others; run: chmod 600 {path}")


def _unusable(name: str, path: Path | None, error: OSError) -> ConfigError:
    return ConfigError(f"{name} {path} cannot be used: {error.strerror or type(error).__name__}")
