"""The hospital's certificates: who signs whom, for what, and that nothing is ever replaced."""

import datetime
import ssl
import stat

import pytest
from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from vitalring.errors import ConfigError
from vitalring.gateway.certificates import make_authority, make_client, make_server, provision

NOW = datetime.datetime(2026, 3, 1, tzinfo=datetime.UTC)
DAY = datetime.timedelta(days=1)


@pytest.fixture(scope="module")
def authority():
    return make_authority("Hospital", NOW, 365)


def load(credential):
    return x509.load_pem_x509_certificate(credential.certificate_pem)


def verify(certificate, authority, hosts, when=NOW):
    store = x509.verification.Store([load(authority)])
    verifier = x509.verification.PolicyBuilder().store(store).time(when)
    return verifier.build_server_verifier(x509.DNSName(hosts)).verify(load(certificate), [])


def test_the_authority_signs_end_certificates_only(authority):
    certificate = load(authority)
    constraints = certificate.extensions.get_extension_for_class(x509.BasicConstraints)
    assert constraints.critical
    assert (constraints.value.ca, constraints.value.path_length) == (True, 0)
    usage = certificate.extensions.get_extension_for_class(x509.KeyUsage).value
    assert usage.key_cert_sign
    assert not usage.digital_signature
    certificate.verify_directly_issued_by(certificate)


def test_a_server_is_valid_for_its_hosts_alone(authority):
    server = make_server(authority, ["broker.ward", "10.0.0.7", "fd00::1"], NOW, 90)
    names = load(server).extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["broker.ward"]
    assert [str(a) for a in names.get_values_for_type(x509.IPAddress)] == ["10.0.0.7", "fd00::1"]
    verify(server, authority, "broker.ward")
    with pytest.raises(x509.verification.VerificationError):
        verify(server, authority, "other.ward")
    with pytest.raises(x509.verification.VerificationError):
        verify(server, authority, "broker.ward", NOW + 91 * DAY)
    with pytest.raises(x509.verification.VerificationError):
        verify(server, make_authority("Hospital", NOW, 365), "broker.ward")


def test_a_client_can_be_no_server_and_no_authority(authority):
    client = make_client(authority, "cohort-a", NOW, 90)
    certificate = load(client)
    extensions = certificate.extensions
    assert list(extensions.get_extension_for_class(x509.ExtendedKeyUsage).value) == [
        ExtendedKeyUsageOID.CLIENT_AUTH
    ]
    assert not extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    [name] = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    assert name.value == "cohort-a"
    with pytest.raises(x509.verification.VerificationError):
        verify(client, authority, "cohort-a")
    certificate.verify_directly_issued_by(load(authority))


def test_no_certificate_outlives_its_authority(authority):
    client = make_client(authority, "gateway", NOW + 300 * DAY, 825)
    assert load(client).not_valid_after_utc == NOW + 365 * DAY
    with pytest.raises(ConfigError, match="expired"):
        make_client(authority, "gateway", NOW + 366 * DAY, 10)


def test_keys_do_not_show_in_repr(authority):
    assert "PRIVATE" not in repr(authority)


@pytest.mark.parametrize(
    "host", ["", "a b", "broker:8883", "mqtts://broker", "-a", "a..b", "ä.de", "*", "a" * 64]
)
def test_hosts_that_cannot_be_named_are_refused(authority, host):
    with pytest.raises(ConfigError, match="host"):
        make_server(authority, [host], NOW, 90)


@pytest.mark.parametrize("days", [0, -1, 40_000])
def test_impossible_validities_are_refused(authority, days):
    with pytest.raises(ConfigError, match="days"):
        make_client(authority, "gateway", NOW, days)


def test_a_server_without_hosts_is_refused(authority):
    with pytest.raises(ConfigError, match="hosts"):
        make_server(authority, [], NOW, 90)


@pytest.mark.parametrize("name", ["", "../x", "A", "ca", "server", "a/b", "a" * 65])
def test_client_names_stay_inside_the_folder(tmp_path, name):
    with pytest.raises(ConfigError, match="client name"):
        provision(tmp_path, "H", ["broker"], [name], NOW)
    assert list(tmp_path.iterdir()) == []


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_running_again_adds_and_changes_nothing(tmp_path):
    provision(tmp_path, "H", ["broker"], ["gateway"], NOW)
    first = contents(tmp_path)
    files = provision(tmp_path, "H", ["broker"], ["gateway", "cohort-b"], NOW + 30 * DAY)
    second = contents(tmp_path)
    assert second.items() > first.items()
    assert set(second) - set(first) == {"cohort-b.pem", "cohort-b.key"}
    assert set(files) == {"ca", "server", "gateway", "cohort-b"}
    for credential in files.values():
        assert stat.S_IMODE(credential.key_file.stat().st_mode) == 0o600
        context = ssl.create_default_context(cafile=files["ca"].certificate_file)
        context.load_cert_chain(credential.certificate_file, credential.key_file)


def test_a_new_host_needs_a_new_server_certificate_under_the_same_authority(tmp_path):
    provision(tmp_path, "H", ["broker"], [], NOW)
    with pytest.raises(ConfigError, match=r"10\.0\.0\.7.*move"):
        provision(tmp_path, "H", ["broker", "10.0.0.7"], [], NOW)
    before = contents(tmp_path)
    for name in ("server.pem", "server.key"):
        (tmp_path / name).unlink()
    provision(tmp_path, "H", ["broker", "10.0.0.7"], [], NOW)
    after = contents(tmp_path)
    assert (after["ca.pem"], after["ca.key"]) == (before["ca.pem"], before["ca.key"])
    assert after["server.pem"] != before["server.pem"]


@pytest.mark.parametrize("name", ["ca", "server", "gateway"])
@pytest.mark.parametrize("fault", ["half", "damaged", "swapped"])
def test_files_that_do_not_belong_together_are_named_and_kept(tmp_path, name, fault):
    provision(tmp_path, "H", ["broker"], ["gateway", "aggregator"], NOW)
    key = tmp_path / f"{name}.key"
    if fault == "half":
        key.unlink()
    elif fault == "damaged":
        key.write_bytes(key.read_bytes()[:-60])
    else:
        key.write_bytes((tmp_path / "aggregator.key").read_bytes())
    before = contents(tmp_path)
    with pytest.raises(ConfigError, match=f"{name}.pem"):
        provision(tmp_path, "H", ["broker"], ["gateway", "aggregator"], NOW)
    assert contents(tmp_path) == before
