"""Make the next roster of a cohort: who is revoked, who joins, when an epoch begins (SPEC 9.14).

The host draws it up and signs it; every other hospital is told what changes and adds its
signature; then it is put where aggregators look before each plan. What is signed in part never
stands under the name that services read.
"""

import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from vitalring.aggregator.rosters import BEFORE
from vitalring.config import load_config
from vitalring.errors import ConfigError
from vitalring.files import read_file, read_secret, write_atomic
from vitalring.gateway.config import GatewayConfig
from vitalring.protocol import ring_suite, rosters, signing, trust
from vitalring.protocol.cbor import decode, digest, encode
from vitalring.protocol.records import Federation, Roster
from vitalring.tools import signed_rosters
from vitalring.tools.enrolments import EnrolledKey, read_barred, read_enrolments, read_keys
from vitalring.tools.federation import NAMES_FILE, Layout
from vitalring.tools.roster_checks import check_roster

NEXT_FILE = "next-roster.cbor"
"""The roster that hospitals are signing; the gateway's and aggregators' is `roster.cbor`."""
_SEED_BYTES = 32
_KEY = re.compile(r"[0-9a-f]{64}", re.ASCII)


@dataclass(frozen=True)
class Change:
    """A roster, the one before it, and the names of hospitals that have yet to sign it."""

    before: Roster
    after: Roster
    digest: bytes
    missing: tuple[str, ...] = ()
    left_out: tuple[str, ...] = field(default=(), repr=False)
    """Devices with a key of the epoch that stay out: revoked in an earlier one, or barred."""


@dataclass(frozen=True)
class Wanted:
    """What an operator asks for; a device is named by its name or by its key in hexadecimal."""

    revoke: Sequence[str] = ()
    enrol: bool = False
    """Take in every key that the office has for the roster's epoch."""
    enrol_from: Sequence[Path] = ()
    """Files of lines NAME EPOCH KEY, in addition to what the office has."""
    new_epoch: bool = False
    readmit: Sequence[str] = ()
    ring_size: int = 0
    """Most keys in a ring; 0 keeps what there is, or one ring where there is one."""

    @property
    def anything(self) -> bool:
        """Tell whether there is anything to change."""
        changes = (self.revoke, self.enrol, self.enrol_from, self.new_epoch, self.ring_size)
        return any(bool(each) for each in changes)


def draw_up(folder: Path, authority_key: bytes, wanted: Wanted, *, instead: bool = False) -> Change:
    """Write the next roster with the signatures of all hospitals whose secrets are in `folder`.

    One that all have signed, on a machine that has founded them all, is installed too. Raises
    ConfigError where this is not the host, another one is being signed already, or another one
    of this number was signed before (`signed_rosters`, which says what `instead` means).
    """
    at = _Study.read(folder, authority_key)
    host = at.federation.hospitals[0].name
    if host not in at.seeds:
        raise ConfigError(f"{host} is the host of {at.federation.name} and makes its rosters")
    if at.next_path.exists():
        raise ConfigError(
            f"{at.next_path} is being signed: install it first, or remove it if it is not wanted"
        )
    known = _enrolled(folder, host, wanted.enrol_from)
    revoked = _revoked(at.history())
    barred = _barred(folder, host)
    after, left_out = next_roster(
        at.study.roster, at.study.plan.ring_suite, wanted, known, revoked, barred
    )
    check_roster(at.study.plan, after)
    _note(folder, at, after, instead=instead)
    signed = signing.sign(after, list(at.seeds.values()))
    write_atomic(at.next_path, signed)
    change = replace(_change(at, signed), left_out=left_out)
    if not change.missing:
        install(folder, authority_key)
    return change


def next_roster(
    present: Roster,
    suite: int,
    wanted: Wanted,
    known: Sequence[EnrolledKey],
    revoked: Collection[bytes],
    barred: Collection[str] = (),
) -> tuple[Roster, tuple[str, ...]]:
    """Return the roster that is asked for, and names whose new keys stay out.

    `known` are the keys with names, `revoked` keys that a later roster of their epoch left out:
    their devices stay out of later epochs too, and so do those that the office has `barred`.
    Raises ConfigError for a device that is not there or would have two keys, or where nothing
    would change.
    """
    epoch = present.epoch + wanted.new_epoch
    out = {key for each in wanted.revoke for key in _keys_of(each, present, known)}
    banned = {each.name for each in known if each.key in revoked or each.key in out} | set(barred)
    banned -= set(wanted.readmit)
    here = set() if wanted.new_epoch else set(present.keys)
    new = [e for e in known if e.epoch == epoch and e.key not in here and e.key not in revoked]
    joining = {each.key for each in new if each.name not in banned}
    left_out = tuple(sorted({each.name for each in new} & banned))
    if wanted.new_epoch:
        keys = joining
        if len(keys) < 2:
            raise ConfigError(
                f"{len(keys)} devices have a key of epoch {epoch}: open the enrolment of that "
                "epoch first, with `vitalring gateway enrolment open`"
            )
    else:
        keys = here - out
        if wanted.enrol or wanted.enrol_from:
            keys |= joining
        else:
            left_out = ()
        if keys == here and not wanted.ring_size:
            but = f" but of {', '.join(left_out)}, revoked before or barred" if left_out else ""
            raise ConfigError(
                f"nothing changes: roster {present.serial} has every key that the office knows "
                f"of epoch {epoch}{but}"
            )
    _check_one_each(known, epoch, keys)
    return (
        replace(
            present,
            serial=present.serial + 1,
            epoch=epoch,
            keys=tuple(sorted(keys)),
            ring_size=wanted.ring_size or _ring_size(present, suite, len(keys)),
        ),
        left_out,
    )


def countersign(folder: Path, authority_key: bytes, *, instead: bool = False) -> Change:
    """Add the signatures of the hospitals in `folder` to the next roster.

    It must come after the roster that is known here, fit the study, and be the only one of its
    number that they sign (`signed_rosters`). Raises SignatureError if somebody signed it who is
    no hospital, RecordError or ConfigError.
    """
    at = _Study.read(folder, authority_key)
    data = read_file(at.next_path)
    keys = {hospital.identity_key for hospital in at.federation.hospitals}
    roster = signing.verify(Roster, data, keys, 1)
    rosters.check_later(roster, at.study.roster)
    check_roster(at.study.plan, roster)
    _note(folder, at, roster, instead=instead)
    signed: signing.Signed = decode(signing.Signed, data)
    ours = decode(
        signing.Signed, signing.sign_payload(signed.payload, list(at.seeds.values()))
    ).signatures
    all_ = {signature.key: signature for signature in (*signed.signatures, *ours)}
    ordered = tuple(all_[key] for key in sorted(all_))
    complete = encode(signing.Signed(signed.payload, ordered))
    write_atomic(at.next_path, complete)
    return _change(at, complete)


def install(folder: Path, authority_key: bytes) -> Change:
    """Put the next roster where services look, once all hospitals have signed it.

    The one that it takes the place of is kept beside it. Raises ConfigError where there is none
    or a signature is missing, RecordError where it does not come after the present one.
    """
    at = _Study.read(folder, authority_key)
    if not at.next_path.exists():
        raise ConfigError(f"{at.next_path} is not there: make it with `federation roster`")
    data = read_file(at.next_path)
    change = _change(at, data)
    if change.missing:
        raise ConfigError(f"{at.next_path} lacks the signature of {', '.join(change.missing)}")
    # An installation that was cut short has all but removed its file.
    if digest(data) != at.study.roster_digest:
        rosters.later_study(at.study, data)
        present = read_file(at.path)
        write_atomic(at.path.parent / BEFORE / f"{at.study.roster.serial:06}.cbor", present)
        write_atomic(at.path, data)
    at.next_path.unlink()
    return change


def shown(folder: Path, authority_key: bytes) -> tuple[Roster, bytes, Change | None]:
    """Return the present roster, its digest, and the change that is being signed, if any."""
    at = _Study.read(folder, authority_key)
    pending = _change(at, read_file(at.next_path)) if at.next_path.exists() else None
    return at.study.roster, at.study.roster_digest, pending


def describe(change: Change) -> list[str]:
    """Return what a person who is to sign a roster must know of it."""
    before, after = change.before, change.after
    old, new = set(before.keys), set(after.keys)
    lines = [
        f"roster      {after.serial} of cohort {after.cohort}, after roster {before.serial}",
        f"epoch       {after.epoch}" + (", a new one" if after.epoch != before.epoch else ""),
        f"devices     {len(new)}: {len(old - new)} removed, {len(new - old)} added, "
        f"{len(old & new)} as before",
        f"rings       of {after.ring_size} keys at most",
        f"digest      {change.digest.hex()}",
    ]
    if change.left_out:
        lines.append(f"left out    {', '.join(change.left_out)}: revoked before, or barred")
    return lines


@dataclass(frozen=True)
class _Study:
    """A federation's folder as this command finds it."""

    public: Path
    federation: Federation
    study: trust.Study
    seeds: Mapping[str, bytes] = field(repr=False)

    @property
    def path(self) -> Path:
        return self.public / trust.ROSTER_FILE

    @property
    def next_path(self) -> Path:
        return self.public / NEXT_FILE

    @classmethod
    def read(cls, folder: Path, authority_key: bytes) -> "_Study":
        """Open the study and the seeds of the hospitals whose secrets are here."""
        layout = Layout(folder)
        files = trust.open_study_files(lambda name: read_file(layout.public / name), authority_key)
        seeds = {}
        for hospital in files.study.federation.hospitals:
            path = layout.folder_of(hospital.name) / "identity.seed"
            if path.exists():
                seed = read_secret(path, _SEED_BYTES)
                if signing.public_key(seed) != hospital.identity_key:
                    raise ConfigError(f"{path} is not the identity key of {hospital.name}")
                seeds[hospital.name] = seed
        if not seeds:
            raise ConfigError(f"{folder / 'hospitals'} holds the secrets of no hospital")
        return cls(layout.public, files.study.federation, files.study, seeds)

    def history(self) -> list[Roster]:
        """Return the rosters that were installed here, the present one last."""
        paths = sorted((self.public / BEFORE).glob("*.cbor"))
        earlier = [trust.open_roster(read_file(path), self.federation) for path in paths]
        return [*earlier, self.study.roster]


def _note(folder: Path, at: _Study, roster: Roster, *, instead: bool) -> None:
    for hospital in at.seeds:
        signed_rosters.note(Layout(folder).folder_of(hospital), roster, instead=instead)


def _change(at: _Study, data: bytes) -> Change:
    keys = {hospital.identity_key: hospital.name for hospital in at.federation.hospitals}
    after = signing.verify(Roster, data, set(keys), 1)
    signers = {signature.key for signature in decode(signing.Signed, data).signatures}
    missing = tuple(name for key, name in keys.items() if key not in signers)
    return Change(at.study.roster, after, digest(data), missing)


def _enrolled(folder: Path, host: str, files: Iterable[Path]) -> tuple[EnrolledKey, ...]:
    """Return the keys that the host's office knows, or its file of names, and those of `files`."""
    home = Layout(folder).folder_of(host)
    known: tuple[EnrolledKey, ...] = ()
    if (home / "gateway.toml").exists():
        known = read_enrolments(load_config(GatewayConfig, home / "gateway.toml"))
    elif (home / NAMES_FILE).exists():
        known = read_keys(home / NAMES_FILE)
    found = {each.key: each for path in files for each in read_keys(path)}
    return tuple({**{each.key: each for each in known}, **found}.values())


def _barred(folder: Path, host: str) -> frozenset[str]:
    """Return the devices from which the host's office takes no key."""
    path = Layout(folder).folder_of(host) / "gateway.toml"
    return read_barred(load_config(GatewayConfig, path)) if path.exists() else frozenset()


def _check_one_each(known: Sequence[EnrolledKey], epoch: int, keys: Collection[bytes]) -> None:
    """Refuse two keys of one device: it would count twice in each round. Raises ConfigError."""
    names = Counter(each.name for each in known if each.epoch == epoch and each.key in keys)
    if twice := sorted(name for name, count in names.items() if count > 1):
        raise ConfigError(
            f"{', '.join(twice)} would have two keys in epoch {epoch}: compare the files of keys "
            "with `vitalring gateway enrolment list`"
        )


def _revoked(history: Sequence[Roster]) -> set[bytes]:
    """Return the keys of earlier rosters that the newest roster of their epoch does not have."""
    newest = {roster.epoch: set(roster.keys) for roster in history}
    return {key for roster in history for key in roster.keys if key not in newest[roster.epoch]}


def _keys_of(device: str, present: Roster, known: Sequence[EnrolledKey]) -> set[bytes]:
    """Return the keys of the present roster by a device's name, or by the key itself."""
    if _KEY.fullmatch(device):
        found = {bytes.fromhex(device)}
    else:
        found = {each.key for each in known if each.name == device}
    if not (found := found & set(present.keys)):
        raise ConfigError(
            f"{device} has no key in roster {present.serial} of {present.cohort}, epoch "
            f"{present.epoch}: `vitalring gateway enrolment list` says who has"
        )
    return found


def _ring_size(present: Roster, suite: int, devices: int) -> int:
    """Return how rings are cut: one ring stays one, as long as its suite has room."""
    if len(present.keys) <= present.ring_size:
        return min(max(present.ring_size, devices), ring_suite.most_keys(suite))
    return present.ring_size
