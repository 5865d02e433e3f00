"""A hospital's own certificate authority for its broker.

One authority per hospital signs the broker's certificate and one client certificate for each
role. All devices of a cohort share one credential, so that TLS does not tell them apart
(SPEC 3.10). Nothing that exists is ever replaced: kits in the field trust the authority
they were shipped with.
"""

import datetime
import ipaddress
import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from vitalring.errors import ConfigError
from vitalring.files import read_file, write_atomic, write_secret

AUTHORITY = "ca"
SERVER = "server"
CLOCK_SKEW = datetime.timedelta(days=1)
"""Certificates are valid from a day ago, for devices whose clock is behind."""
MAX_COMMON_NAME = 64
_CLIENT = re.compile(r"[a-z0-9-]{1,64}", re.ASCII)
_HOST_NAME = re.compile(r"(?!-)[A-Za-z0-9-]{1,63}(\.[A-Za-z0-9-]{1,63}){0,8}", re.ASCII)


@dataclass(frozen=True)
class Credential:
    """A certificate and its key, PEM."""

    certificate_pem: bytes
    key_pem: bytes = field(repr=False)


@dataclass(frozen=True)
class CredentialFiles:
    """Where a credential lies; the key file has mode 0600."""

    certificate_file: Path
    key_file: Path


def make_authority(name: str, now: datetime.datetime, days: int) -> Credential:
    """Make a self-signed authority that may sign end certificates only."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = _name(name)
    builder = _builder(subject, subject, key.public_key(), now, _end(now, days))
    builder = (
        builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(signs_certificates=True), critical=True)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(key.public_key()), critical=False
        )
    )
    return _credential(builder.sign(key, hashes.SHA256()), key)


def make_server(
    authority: Credential, hosts: Sequence[str], now: datetime.datetime, days: int
) -> Credential:
    """Make the broker's certificate for host names and IP addresses (RFC 5280, 4.2.1.6).

    Raises:
        ConfigError: without hosts, or with one that cannot stand in a certificate.
    """
    if not hosts:
        raise ConfigError("hosts is empty: name the host or address that devices connect to")
    names = x509.SubjectAlternativeName([_host(host) for host in hosts])
    return _sign(authority, SERVER, ExtendedKeyUsageOID.SERVER_AUTH, now, days, names)


def make_client(
    authority: Credential, common_name: str, now: datetime.datetime, days: int
) -> Credential:
    """Make a client certificate whose common name is the broker's user name."""
    return _sign(authority, common_name, ExtendedKeyUsageOID.CLIENT_AUTH, now, days, None)


def provision(
    folder: Path,
    organisation: str,
    hosts: Sequence[str],
    clients: Sequence[str],
    now: datetime.datetime,
    days: int = 825,
    authority_days: int = 3650,
) -> dict[str, CredentialFiles]:
    """Write what is missing below `folder`: the authority, the broker's and clients' certificates.

    Returns the files by name: "ca", "server" and each of `clients`. Running again changes
    nothing that is there. A crash between the two files of one credential leaves a key
    without a certificate; the key was never used, and is named for removal.

    Raises:
        ConfigError: when existing files do not fit the request, saying which to move away.
        StorageError: when a file cannot be written.
    """
    for name in clients:
        if _CLIENT.fullmatch(name) is None or name in (AUTHORITY, SERVER):
            raise ConfigError(f"client name {name[:80]!r}: use a-z, 0-9, hyphen; not ca or server")
    authority = _load(folder, AUTHORITY)
    if authority is None:
        authority = make_authority(organisation, now, authority_days)
        _write(folder, AUTHORITY, authority)
    present = _load(folder, SERVER)
    if present is None:
        _write(folder, SERVER, make_server(authority, hosts, now, days))
    else:
        _check_covers(present, hosts, folder / f"{SERVER}.pem")
    for name in clients:
        if _load(folder, name) is None:
            _write(folder, name, make_client(authority, name, now, days))
    return {name: _files(folder, name) for name in (AUTHORITY, SERVER, *clients)}


def _sign(
    authority: Credential,
    common_name: str,
    purpose: x509.ObjectIdentifier,
    now: datetime.datetime,
    days: int,
    names: x509.SubjectAlternativeName | None,
) -> Credential:
    issuer = x509.load_pem_x509_certificate(authority.certificate_pem)
    issuer_key = _private_key(authority)
    key = ec.generate_private_key(ec.SECP256R1())
    # A certificate that outlives its authority is refused by verifiers at a surprising time.
    end = min(_end(now, days), issuer.not_valid_after_utc)
    if end <= now:
        raise ConfigError(f"the authority expired at {issuer.not_valid_after_utc:%Y-%m-%d}")
    builder = _builder(_name(common_name), issuer.subject, key.public_key(), now, end)
    builder = (
        builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(signs_certificates=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([purpose]), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key.public_key()),
            critical=False,
        )
    )
    if names is not None:
        builder = builder.add_extension(names, critical=False)
    return _credential(builder.sign(issuer_key, hashes.SHA256()), key)


def _builder(
    subject: x509.Name,
    issuer: x509.Name,
    key: ec.EllipticCurvePublicKey,
    now: datetime.datetime,
    end: datetime.datetime,
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - CLOCK_SKEW)
        .not_valid_after(end)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
    )


def _usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        encipher_only=False,
        decipher_only=False,
    )


def _end(now: datetime.datetime, days: int) -> datetime.datetime:
    if not 1 <= days <= 36_500:
        raise ConfigError(f"a certificate valid for {days} days: use 1 to 36500")
    return now + datetime.timedelta(days=days)


def _name(common_name: str) -> x509.Name:
    if not 1 <= len(common_name) <= MAX_COMMON_NAME or not common_name.isprintable():
        raise ConfigError(
            f"certificate name {common_name[:80]!r}: "
            f"use 1 to {MAX_COMMON_NAME} printable characters"
        )
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])


def _host(host: str) -> x509.GeneralName:
    with suppress(ValueError):
        return x509.IPAddress(ipaddress.ip_address(host))
    if _HOST_NAME.fullmatch(host) is None:
        raise ConfigError(
            f"host {host!r} cannot stand in a certificate: give a name or an address, no port"
        )
    return x509.DNSName(host)


def _check_covers(server: Credential, hosts: Sequence[str], path: Path) -> None:
    certificate = x509.load_pem_x509_certificate(server.certificate_pem)
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    missing = [host for host in hosts if _host(host) not in names]
    if missing:
        raise ConfigError(
            f"{path} is not valid for {', '.join(missing)}: move {path} and "
            f"{path.with_suffix('.key')} away and run again; devices stay valid, the authority "
            "does not change"
        )


def _credential(certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey) -> Credential:
    return Credential(
        certificate.public_bytes(serialization.Encoding.PEM),
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        ),
    )


def _private_key(credential: Credential) -> ec.EllipticCurvePrivateKey:
    key = serialization.load_pem_private_key(credential.key_pem, None)
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise ConfigError("the authority's key is not an elliptic-curve key")
    return key


def _files(folder: Path, name: str) -> CredentialFiles:
    return CredentialFiles(folder / f"{name}.pem", folder / f"{name}.key")


def _load(folder: Path, name: str) -> Credential | None:
    """Read a credential whose two files belong together, or None when there is none."""
    files = _files(folder, name)
    there = [path for path in (files.certificate_file, files.key_file) if path.exists()]
    if not there:
        return None
    if len(there) == 1:
        raise ConfigError(f"{there[0]} stands without its partner: move it away and run again")
    credential = Credential(read_file(files.certificate_file), read_file(files.key_file))
    try:
        certificate = x509.load_pem_x509_certificate(credential.certificate_pem)
        matches = certificate.public_key() == _private_key(credential).public_key()
    except (ValueError, TypeError):
        raise ConfigError(f"{files.certificate_file} or its key is damaged") from None
    if not matches:
        raise ConfigError(f"{files.certificate_file} and {files.key_file} do not belong together")
    return credential


def _write(folder: Path, name: str, credential: Credential) -> None:
    files = _files(folder, name)
    # The key first and exclusively: of two runs at once, one stops here.
    write_secret(files.key_file, credential.key_pem)
    write_atomic(files.certificate_file, credential.certificate_pem)
