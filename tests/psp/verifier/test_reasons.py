"""Each way in which a report can be wrong has one reason, and each reason its way."""

from dataclasses import replace
from functools import cache
from importlib import import_module

import forger
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from forger import ARK, ASK, NOW, OURS, TCB, VCEK, evidence, name

from psp.verifier import AMD_ROOTS, Expectations, Reason, Rejected, Stage, bound_report_data, reports_judged, verify
from psp.verifier.chain import check_chain

CAREFUL = Expectations()
LEVELS = {"bootloader": 3, "tee": 0, "snp": 8, "microcode": 115}
NONCE = bytes(range(100, 132))


def judge(what, expected=CAREFUL, now=NOW, roots=forger.ROOTS):
    return verify(what, expected, now, roots)


def with_extension(form, kind, value, *, critical=False):
    return replace(form, extensions=form.extensions | {kind: (critical, value)})


def without(form, kind):
    return replace(form, extensions={key: value for key, value in form.extensions.items() if key != kind})


def less(tcb, at):
    return tcb[:at] + bytes([tcb[at] - 1]) + tcb[at + 1 :]


def more(tcb, at):
    return tcb[:at] + bytes([tcb[at] + 1]) + tcb[at + 1 :]


def changed_report(at, value):
    data = bytearray(forger.report())
    data[at] = value
    return evidence(report_bytes=bytes(data))


BROKEN_SPKI = forger.spki(forger.EC_KEY)[:-1] + bytes([forger.spki(forger.EC_KEY)[-1] ^ 1])
EVEN_RSA = forger.spki(forger.rsa_key("root"))[:-6] + b"\x00" + forger.spki(forger.rsa_key("root"))[-5:]
SMALL_RSA = forger.spki(forger.rsa_key("root"))[:-1] + b"\x03"  # exponent 65539
VLEK_CHAIN = {"ask": forger.ASVK, "leaf": forger.VLEK, "key_info": 1 << 2, "chip_id": bytes(64)}

STRANGER = ec.derive_private_key(3, ec.SECP384R1())
AGENT_ID = b"\3" * 32
PROVED = Expectations(migration_agent=Expectations(measurement=b"\1" * 48))


def agent_report(**fields):
    """A migration agent's own, by the guest's chip."""
    return forger.report(**{"report_id": AGENT_ID, "measurement": b"\1" * 48} | fields)


def moved(shown, **fields):
    """Of a guest that an agent may move, and what its host shows of that."""
    return replace(evidence(**{"policy": 0x70000, "report_id_ma": AGENT_ID} | fields), agent_report=shown)


@cache
def ways():
    """reason: what was sent, and what was expected if not what a careful tenant expects."""
    return {
        Reason.REPORT_LENGTH: [(evidence(report_bytes=forger.report()[:-1]),)],
        Reason.REPORT_VERSION: [(evidence(version=version),) for version in (0, 1, 6)],
        Reason.REPORT_POLICY_RESERVED: [(evidence(policy=policy),) for policy in (0x10000, 0x30000 | 1 << 26)],
        Reason.REPORT_VMPL: [(evidence(vmpl=4),)],
        Reason.REPORT_SIGNATURE_ALGORITHM: [(evidence(signature_algo=2),)],
        Reason.REPORT_PLATFORM_INFO: [(evidence(platform_info=1 << 6),), (evidence(platform_info=1 << 8),)],
        Reason.REPORT_KEY_INFO: [(evidence(key_info=1 << 5),), (evidence(key_info=2 << 2),)],
        Reason.REPORT_RESERVED_4C: [(evidence(reserved_4c=1),)],
        Reason.REPORT_CPUID: [(evidence(cpuid=b"\x17\x01\x01"),), (evidence(version=2),)],
        Reason.REPORT_RESERVED_18B: [(evidence(reserved_18b=b"\x01" + bytes(20)),)],
        Reason.REPORT_CHIP_ID: [(forger.turin_evidence(chip_id=forger.CHIP_ID),)],
        Reason.REPORT_RESERVED_1EB: [(evidence(reserved_1eb=1),)],
        Reason.REPORT_RESERVED_1EF: [(evidence(reserved_1ef=1),)],
        Reason.REPORT_TCB_RESERVED: [
            (evidence(**{which: TCB[:at] + b"\1" + TCB[at + 1 :]}),)
            for at, which in enumerate(("current_tcb", "reported_tcb", "committed_tcb", "launch_tcb"), 2)
        ],
        Reason.REPORT_RESERVED_1F8: [(evidence(launch_mitigations=1),), (evidence(version=4, current_mitigations=1),)],
        Reason.REPORT_RESERVED_208: [(evidence(version=5, reserved_208=bytes(151) + b"\1"),)],
        Reason.REPORT_SIGNATURE_PADDING: [(changed_report(at, 1),) for at in (0x2D0, 0x318, 0x330, 0x49F)],
        Reason.ARK_MISSING: [(evidence(ark=None),)],
        Reason.ARK_MALFORMED: [(evidence(ark=b"\x30\x80\0\0"),)],
        Reason.ASK_MISSING: [(evidence(ask=None),)],
        Reason.ASK_MALFORMED: [(evidence(ask=b""),)],
        Reason.LEAF_MISSING: [(evidence(leaf=None),)],
        Reason.LEAF_MALFORMED: [(evidence(leaf=bytes(1400)),)],
        Reason.CRL_MALFORMED: [(evidence(crl=forger.crl()[:-1]),), (evidence(crl=bytes(1 << 19)),)],
        Reason.UNKNOWN_PRODUCT: [
            (evidence(ark=replace(ARK, subject=name(text))),) for text in ("ARK-Venice", "Milan", "SEV-Milan", "")
        ],
        Reason.ARK_KEY: [
            (evidence(ark=replace(ARK, key=key)),) for key in (SMALL_RSA, EVEN_RSA, forger.spki(forger.EC_KEY))
        ],
        Reason.ROOT_UNKNOWN: [(evidence(ark=replace(ARK, key="issuer", signer="issuer")),)],
        Reason.ARK_NAMES: [
            (evidence(ark=replace(ARK, subject=name("ARK-Milan", a6="DE"), issuer=name("ARK-Milan", a6="DE"))),),
            (evidence(ark=replace(ARK, issuer=name("ARK-Genoa"))),),
        ],
        Reason.ARK_PROFILE: [
            (evidence(ark=without(ARK, "2.5.29.19")),),
            # Two usages in place of one; not critical; eight bits unused; a byte more.
            *(
                (evidence(ark=with_extension(ARK, "2.5.29.15", bytes.fromhex(value), critical=critical)),)
                for value, critical in (
                    ("03020104", True), ("03020106", False), ("03020806", True), ("0302010600", True),
                )
            ),
            (evidence(ark=with_extension(ARK, "2.5.29.31", forger.location("https://a/", "https://b/"))),),
            (evidence(ark=with_extension(ARK, "2.5.29.17", b"\x30\x00")),),
        ],
        Reason.ARK_SIGNATURE: [(evidence(ark=replace(ARK, signer="issuer")),)],
        Reason.ARK_NOT_YET_VALID: [(evidence(ark=replace(ARK, not_before=NOW + 1)),)],
        Reason.ARK_EXPIRED: [(evidence(ark=replace(ARK, not_after=NOW - 1)),)],
        Reason.ASK_NAMES: [
            (evidence(ask=replace(ASK, subject=name("SEV-Genoa"))),),
            (evidence(ask=replace(ASK, subject=name("SEV-Milan", a10="Another"))),),
        ],
        Reason.ASK_ISSUER: [(evidence(ask=replace(ASK, issuer=name("ARK-Genoa"))),)],
        Reason.ASK_KEY: [(evidence(ask=replace(ASK, key=forger.spki(forger.EC_KEY))),)],
        Reason.ASK_PROFILE: [
            (evidence(ask=with_extension(ASK, "2.5.29.19", bytes.fromhex("30030101ff"), critical=True)),),
            (evidence(ask=with_extension(ASK, "2.5.29.15", bytes.fromhex("03020106"), critical=True)),),
        ],
        Reason.ASK_SIGNATURE: [(evidence(ask=replace(ASK, signer="issuer")),)],
        Reason.ASK_NOT_YET_VALID: [(evidence(ask=replace(ASK, not_before=NOW + 1)),)],
        Reason.ASK_EXPIRED: [(evidence(ask=replace(ASK, not_after=NOW - 1)),)],
        Reason.LEAF_NAMES: [
            (evidence(leaf=replace(VCEK, subject=name("SEV-VLEK"))),),
            (evidence(ask=forger.ASVK, leaf=replace(VCEK, issuer=name("SEV-VLEK-Milan"))),),
        ],
        Reason.LEAF_ISSUER: [(evidence(leaf=replace(VCEK, issuer=name("SEV-Genoa"))),)],
        Reason.LEAF_SIGNATURE: [(evidence(leaf=replace(VCEK, signer="root")),)],
        Reason.LEAF_KEY: [(evidence(leaf=replace(VCEK, key=key)),) for key in (BROKEN_SPKI, "issuer")],
        Reason.LEAF_PROFILE: [
            (evidence(leaf=without(VCEK, f"{OURS}3.8")),),
            (evidence(leaf=without(VCEK, f"{OURS}4")),),
            (evidence(leaf=with_extension(VCEK, f"{OURS}3.9", forger.integer(1))),),
            (evidence(leaf=with_extension(VCEK, f"{OURS}3.4", forger.integer(1))),),
            (evidence(leaf=with_extension(VCEK, f"{OURS}3.8", forger.integer(256))),),
            (evidence(leaf=with_extension(VCEK, f"{OURS}1", forger.integer(1))),),
            (evidence(leaf=with_extension(VCEK, f"{OURS}4", bytes(63))),),
            (evidence(leaf=with_extension(VCEK, f"{OURS}4", forger.CHIP_ID, critical=True)),),
            (evidence(leaf=with_extension(VCEK, "2.5.29.19", b"\x30\x00")),),
        ],
        Reason.LEAF_PRODUCT: [
            (evidence(leaf=with_extension(VCEK, f"{OURS}2", forger.tlv(0x16, text))),)
            for text in (b"Genoa", b"Milano", b"")
        ],
        Reason.LEAF_NOT_YET_VALID: [(evidence(leaf=replace(VCEK, not_before=NOW + 1)),)],
        Reason.LEAF_EXPIRED: [(evidence(leaf=replace(VCEK, not_after=NOW - 1)),)],
        Reason.CRL_MISSING: [(evidence(), Expectations(crl_demanded=True))],
        Reason.CRL_ISSUER: [(evidence(crl=forger.crl(issuer=name("SEV-Milan"))),)],
        Reason.CRL_SIGNATURE: [(evidence(crl=forger.crl(signer="issuer")),)],
        Reason.CRL_NOT_YET_VALID: [(evidence(crl=forger.crl(this_update=NOW + 1)),)],
        Reason.CRL_EXPIRED: [(evidence(crl=forger.crl(next_update=NOW - 1)),)],
        Reason.ASK_REVOKED: [(evidence(crl=forger.crl(1, 65537)),)],
        Reason.LEAF_REVOKED: [(evidence(crl=forger.crl(0)),)],
        Reason.CHIP_KEY_MASKED: [(evidence(key_info=2),), (evidence(key_info=7 << 2),)],
        Reason.SIGNING_KEY: [(evidence(key_info=1 << 2),), (evidence(**VLEK_CHAIN | {"key_info": 0}),)],
        Reason.VLEK_REFUSED: [(evidence(**VLEK_CHAIN),)],
        Reason.CSP_ID: [
            (evidence(), Expectations(csp_id="a.example", vlek_allowed=True)),
            (evidence(**VLEK_CHAIN), Expectations(vlek_allowed=True, csp_id="another.example")),
        ],
        Reason.PRODUCT_MISMATCH: [(evidence(cpuid=b"\x19\x11\x01"),)],
        Reason.PRODUCT_UNEXPECTED: [(evidence(), Expectations(product="Genoa"))],
        Reason.REPORTED_TCB_MISMATCH: [(evidence(reported_tcb=less(TCB, at)),) for at in (0, 6, 7)],
        Reason.CHIP_ID_MASKED: [(evidence(chip_id=bytes(64)),)],
        Reason.CHIP_ID_MISMATCH: [
            (evidence(chip_id=bytes(range(2, 66))),),
            (evidence(**VLEK_CHAIN | {"chip_id": forger.CHIP_ID}), Expectations(vlek_allowed=True)),
        ],
        Reason.REPORT_SIGNATURE: [
            (evidence(key=ec.derive_private_key(3, ec.SECP384R1())),),
            (evidence(report_bytes=forger.report()[:0x2A0] + bytes(512)),),
        ],
        Reason.POLICY_DEBUG: [(evidence(policy=0xB0000),)],
        Reason.POLICY_MIGRATION: [(evidence(policy=0x70000),)],
        Reason.MIGRATION_AGENT_UNPROVED: [
            (moved(shown), PROVED)
            for shown in (
                None, b"", agent_report()[:-1], agent_report(measurement=b"\2" * 48), agent_report(policy=0xB0000),
                agent_report(policy=0x70000), agent_report(vmpl=1), agent_report(key=STRANGER),
                agent_report(chip_id=bytes(range(2, 66))),
            )
        ],
        Reason.MIGRATION_AGENT_UNLISTED: [
            (moved(agent_report(), report_id_ma=b"\4" * 32), PROVED),
            (moved(agent_report(), report_id_ma=b"\xff" * 32), PROVED),
            (moved(agent_report()), replace(PROVED, migration_agents=frozenset({b"\4" * 32}))),
        ] + [
            (evidence(policy=0x70000, report_id_ma=agent), Expectations(migration_allowed=True, migration_agents=known))
            for agent, known in (
                (b"\1" * 32, frozenset()), (b"\1" * 32, frozenset({b"\2" * 32})),
                (b"\xff" * 32, frozenset({b"\1" * 32})),
            )
        ],
        Reason.POLICY_BIT_MISSING: [(evidence(), Expectations(policy_set=1 << 24))],
        Reason.POLICY_BIT_FORBIDDEN: [(evidence(), Expectations(policy_clear=1 << 16))],
        Reason.POLICY_UNEXPECTED: [(evidence(), Expectations(policy=0x20000))],
        Reason.PLATFORM_BIT_MISSING: [(evidence(platform_info=5), Expectations(platform_set=1 << 5))],
        Reason.PLATFORM_BIT_FORBIDDEN: [(evidence(), Expectations(platform_clear=1))],
        Reason.VMPL_UNEXPECTED: [(evidence(vmpl=1),), (evidence(), Expectations(vmpl=2))],
        Reason.MEASUREMENT_UNEXPECTED: [(evidence(), Expectations(measurement=bytes(48)))],
        Reason.HOST_DATA_UNEXPECTED: [(evidence(), Expectations(host_data=b"\1" * 32))],
        Reason.FAMILY_ID_UNEXPECTED: [(evidence(), Expectations(family_id=b"\1" * 16))],
        Reason.IMAGE_ID_UNEXPECTED: [(evidence(), Expectations(image_id=b"\1" * 16))],
        Reason.GUEST_SVN_LOW: [(evidence(), Expectations(min_guest_svn=5))],
        Reason.CHIP_UNLISTED: [(evidence(), Expectations(chip_ids=frozenset({bytes(64)})))],
        Reason.TCB_REPORTED_ABOVE_COMMITTED: [(evidence(committed_tcb=less(TCB, at)),) for at in (0, 6, 7)],
        Reason.TCB_COMMITTED_ABOVE_CURRENT: [(evidence(committed_tcb=more(TCB, at)),) for at in (0, 1, 6, 7)],
        Reason.TCB_LAUNCH_ABOVE_CURRENT: [(evidence(launch_tcb=more(TCB, at)),) for at in (0, 1, 6, 7)],
        Reason.FIRMWARE_COMMITTED_ABOVE_CURRENT: [(evidence(committed_version=bytes([30, 55, 1])),)],
        Reason.FIRMWARE_PROVISIONAL: [
            (evidence(current_tcb=more(TCB, 7)), Expectations(provisional_allowed=False)),
            (evidence(current_version=bytes([30, 55, 1])), Expectations(provisional_allowed=False)),
        ],
        Reason.TCB_LOW: [(evidence(), Expectations(min_tcb={name: level + 1})) for name, level in LEVELS.items()],
        Reason.TCB_UNEXPECTED: [
            (evidence(), Expectations(pinned_tcb={name: level}))
            for name, level in {**{one: level + 1 for one, level in LEVELS.items()}, "snp": 7, "fmc": 0}.items()
        ],
        Reason.LAUNCH_TCB_LOW: [
            (evidence(), Expectations(min_launch_tcb={name: level + 1})) for name, level in LEVELS.items()
        ],
        Reason.FIRMWARE_LOW: [(evidence(), Expectations(min_firmware=version)) for version in ((1, 55, 30), (2, 0, 0))],
        Reason.MITIGATION_MISSING: [(evidence(version=5, current_mitigations=1), Expectations(mitigations=3))],
        Reason.REPORT_DATA_UNEXPECTED: [(evidence(), Expectations(report_data=bytes(64)))],
        Reason.NONCE_UNEXPECTED: [(evidence(), Expectations(nonce=NONCE))],
        Reason.CHANNEL_UNEXPECTED: [
            (evidence(report_data=bound_report_data(NONCE, b"a")), Expectations(nonce=NONCE, channel_key=b"b"))
        ],
        Reason.NONCE_EXPIRED: [(evidence(), Expectations(nonce_expires=NOW - 1))],
        Reason.AUTHOR_KEY_FLAG: [(evidence(key_info=1),), (evidence(author_key_digest=b"\2" * 48),)],
        Reason.ID_KEY_MISSING: [(evidence(), Expectations(id_key_digests=frozenset()))],
        Reason.ID_KEY_UNTRUSTED: [
            (evidence(id_key_digest=b"\1" * 48), Expectations(id_key_digests=frozenset({b"\2" * 48})))
        ],
        Reason.AUTHOR_KEY_MISSING: [(evidence(), Expectations(author_key_digests=frozenset()))],
        Reason.AUTHOR_KEY_UNTRUSTED: [
            (
                evidence(author_key_digest=b"\1" * 48, key_info=1),
                Expectations(author_key_digests=frozenset({b"\2" * 48})),
            )
        ],
    }


@pytest.mark.parametrize("reason", Reason, ids=lambda reason: reason.name)
def test_each_reason_has_its_causes(reason):
    for sent, *expected in ways()[reason]:
        with pytest.raises(Rejected) as caught:
            judge(sent, *expected)
        assert caught.value.reason is reason
        assert caught.value.passed == tuple(one for one in Reason if one in caught.value.passed)
        line = str(caught.value)
        assert line.startswith(f"{reason.name} ({reason.stage.value}): {reason.field}: expected ")
        assert "\n" not in line


def test_names_from_a_certificate_neither_begin_a_line_nor_move_a_terminal():
    line = str(Rejected(Reason.UNKNOWN_PRODUCT, 'ARK-x"\nbelieved: \x1b[2J\r\x85 \u2028 caf\u00e9'))
    assert line.isprintable()
    assert "believed: " + ascii("\x1b")[1:-1] + "[2J" in line
    assert "caf\u00e9" in line


def test_reasons_stand_in_the_order_of_their_stages():
    stages = [reason.stage for reason in Reason]
    assert stages == sorted(stages, key=list(Stage).index)
    assert set(stages) == set(Stage)


def test_a_good_report_passes_every_check_once():
    verdict = judge(evidence(crl=forger.crl(1)))
    assert sorted((*verdict.passed, *verdict.left_out), key=list(Reason).index) == list(Reason)
    assert Reason.MEASUREMENT_UNEXPECTED in verdict.left_out


def test_the_first_stage_that_fails_decides():
    bad = {"reserved_4c": 1, "policy": 0xB0000, "chip_id": bytes(64)}
    other = ec.derive_private_key(3, ec.SECP384R1())
    sent = (
        evidence(key=other, ark=replace(ARK, signer="issuer"), **bad),
        evidence(key=other, ark=replace(ARK, signer="issuer"), **bad | {"reserved_4c": 0}),
        evidence(key=other, **bad | {"reserved_4c": 0}),
        evidence(key=other, policy=0xB0000),
        evidence(policy=0xB0000),
    )
    expected = Expectations(min_tcb={"snp": 255}, nonce=NONCE, id_key_digests=frozenset())
    found = []
    for one in sent:
        with pytest.raises(Rejected) as caught:
            judge(one, expected)
        found.append(caught.value.reason.stage)
    assert found == [Stage.PARSE, Stage.CHAIN, Stage.BINDING, Stage.SIGNATURE, Stage.POLICY]


def test_all_expectations_met_at_once():
    channel = b"a public key"
    judge(
        evidence(
            version=5, current_mitigations=3, vmpl=2, guest_svn=9, id_key_digest=b"\1" * 48, key_info=1,
            author_key_digest=b"\2" * 48, report_data=bound_report_data(NONCE, channel), crl=forger.crl(),
        ),
        Expectations(
            product="Milan", migration_agents=frozenset({b"\1" * 32}),
            chip_ids=frozenset({forger.CHIP_ID}), crl_demanded=True, policy=0x30000,
            policy_set=1 << 16, policy_clear=1 << 20, platform_set=1 << 5, platform_clear=1 << 1, vmpl=2,
            measurement=b"\x11" * 48, host_data=bytes(32), family_id=bytes(16), image_id=bytes(16), min_guest_svn=9,
            min_tcb=LEVELS, pinned_tcb=LEVELS, min_launch_tcb=LEVELS, min_firmware=(1, 55, 29),
            provisional_allowed=False, mitigations=2, nonce=NONCE, channel_key=channel, nonce_expires=NOW,
            id_key_digests=frozenset({b"\1" * 48}), author_key_digests=frozenset({b"\2" * 48}),
        ),
    )  # fmt: skip


@pytest.mark.parametrize("version", [2, 3, 4, 5])
def test_every_version_is_read(version):
    judge(evidence(version=version, **({"cpuid": bytes(3)} if version == 2 else {})))


def test_a_vlek_is_believed_where_it_is_allowed():
    verdict = judge(evidence(**VLEK_CHAIN), Expectations(vlek_allowed=True, csp_id="cc-us-east-2.amazonaws.com"))
    assert verdict.key.endorsement.chip_id is None


@pytest.mark.parametrize("fields", [{}, {"version": 2, "cpuid": bytes(3)}], ids=["version 3", "version 2"])
def test_turin_has_its_own_tcb_layout_and_short_chip_ids(fields):
    roots = {"Turin": forger.ROOTS["Milan"]}
    verdict = judge(forger.turin_evidence(**fields), Expectations(product="Turin"), roots=roots)
    assert verdict.key.line.layout.split(verdict.report.reported_tcb) == {
        "fmc": 1, "bootloader": 2, "tee": 3, "snp": 4, "microcode": 72
    }  # fmt: skip


def test_a_component_that_a_product_has_not_reaches_no_floor():
    with pytest.raises(Rejected, match="TCB_LOW"):
        judge(evidence(), Expectations(min_tcb={"fmc": 0}))


def test_a_masked_chip_id_is_believed_where_it_is_allowed():
    judge(evidence(chip_id=bytes(64)), Expectations(masked_chip_id_allowed=True))


def test_siena_and_bergamo_go_under_genoas_roots():
    ark, ask = (replace(form, subject=name(cn), issuer=name("ARK-Genoa"))
                for form, cn in ((ARK, "ARK-Genoa"), (ASK, "SEV-Genoa")))  # fmt: skip
    leaf = replace(VCEK, issuer=name("SEV-Genoa"), extensions=forger.vcek_extensions(product="Genoa"))
    sent = evidence(ark, ask, leaf, cpuid=b"\x19\xa0\x02")
    roots = {"Genoa": forger.ROOTS["Milan"]}
    judge(sent, Expectations(product="Siena"), roots=roots)
    with pytest.raises(Rejected, match="PRODUCT_UNEXPECTED"):
        judge(sent, Expectations(product="Genoa"), roots=roots)


def test_a_laboratorys_root_is_none_of_amds():
    with pytest.raises(Rejected, match="ROOT_UNKNOWN"):
        judge(evidence(), roots=AMD_ROOTS)


def test_a_hardware_id_may_be_wrapped_in_an_octet_string():
    leaf = replace(VCEK, extensions=forger.vcek_extensions(chip_id=forger.tlv(4, forger.CHIP_ID)))
    judge(evidence(leaf=leaf))


def test_a_guest_that_may_be_moved_has_a_listed_agent_and_another_needs_none():
    listed = Expectations(migration_allowed=True, migration_agents=frozenset({b"\1" * 32}))
    assert judge(evidence(policy=0x70000, report_id_ma=b"\1" * 32), listed).passed
    assert Reason.MIGRATION_AGENT_UNLISTED in judge(evidence(), listed).left_out


def test_a_guest_that_may_be_moved_is_as_good_as_the_agent_that_its_report_names():
    for listed in (None, frozenset({AGENT_ID, b"\4" * 32})):
        verdict = judge(moved(agent_report()), replace(PROVED, migration_agents=listed))
        assert {Reason.MIGRATION_AGENT_UNPROVED, Reason.MIGRATION_AGENT_UNLISTED} <= set(verdict.passed)
    nobody_moves = judge(evidence(), PROVED)
    assert Reason.MIGRATION_AGENT_UNPROVED in nobody_moves.left_out
    with pytest.raises(ValueError, match="migration_agent: expected a measurement"):
        Expectations(migration_agent=Expectations())


def test_an_agent_s_report_is_looked_at_for_a_guest_alone_that_it_may_move():
    shown = agent_report()
    assert reports_judged(moved(shown), PROVED) == 2
    for what, expected in (
        (moved(shown), CAREFUL), (moved(None), PROVED), (replace(evidence(), agent_report=shown), PROVED),
        (replace(moved(shown), report=b""), PROVED),
    ):  # fmt: skip
        assert reports_judged(what, expected) == 1
    # What is wrong with it is nobody's affair then.
    assert judge(replace(evidence(), agent_report=b"none"), PROVED).passed


def test_a_guest_and_its_agent_have_one_chain_which_is_checked_once(monkeypatch):
    checked = []

    def counted(*args, **kwargs):
        checked.append(args)
        return check_chain(*args, **kwargs)

    monkeypatch.setattr(import_module("psp.verifier.verify"), "check_chain", counted)
    assert judge(moved(agent_report()), PROVED).passed
    assert len(checked) == 1


def test_an_agent_may_demand_a_revocation_list_where_its_guest_does_not():
    agent = replace(PROVED.migration_agent, crl_demanded=True)
    with pytest.raises(Rejected, match="MIGRATION_AGENT_UNPROVED") as rejected:
        judge(moved(agent_report()), Expectations(migration_agent=agent))
    assert "CRL_MISSING" in str(rejected.value)
    shown = replace(moved(agent_report()), crls=evidence(crl=forger.crl()).crls)
    assert judge(shown, Expectations(migration_agent=agent)).passed


def test_under_a_vlek_agent_and_guest_have_their_provider_s_key_and_neither_tells_its_chip():
    provider = Expectations(vlek_allowed=True, migration_agent=replace(PROVED.migration_agent, vlek_allowed=True))
    of_vlek = {"key_info": 1 << 2, "chip_id": bytes(64)}
    assert judge(moved(agent_report(**of_vlek), **VLEK_CHAIN), provider).passed
    for shown, said in (
        (agent_report(**of_vlek | {"chip_id": forger.CHIP_ID}), "CHIP_ID_MISMATCH"),
        (agent_report(), "SIGNING_KEY"),
        (agent_report(**of_vlek, key=STRANGER), "REPORT_SIGNATURE"),
    ):
        with pytest.raises(Rejected, match="MIGRATION_AGENT_UNPROVED") as rejected:
            judge(moved(shown, **VLEK_CHAIN), provider)
        assert said in str(rejected.value)


def test_time_is_inclusive():
    judge(evidence(crl=forger.crl(this_update=NOW, next_update=NOW)))
    judge(evidence(leaf=replace(VCEK, not_before=NOW, not_after=NOW)))


@pytest.mark.parametrize("fields", [
    {"pinned_tcb": {"snp": 256}}, {"migration_agents": frozenset({bytes(31)})},
    {"measurement": bytes(47)}, {"nonce": b""}, {"min_tcb": {"spl": 1}}, {"min_launch_tcb": {"snp": 256}},
    {"chip_ids": frozenset({b"x"})},
    {"id_key_digests": frozenset({bytes(32)})}, {"product": "Naples"},
])  # fmt: skip
def test_expectations_have_their_sizes(fields):
    with pytest.raises(ValueError, match="expected"):
        Expectations(**fields)
