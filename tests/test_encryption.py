"""A sealed string opens in its own context, with its own key, unchanged; and nowhere else."""

import base64
import os
from dataclasses import replace
from datetime import date

import pytest
from django.core.exceptions import ImproperlyConfigured

from everifin_django.encryption import (
    KEY_BYTES,
    EncryptionContext,
    Key,
    SettingsKeys,
    active_key,
    is_known,
    key_id_of,
    new_key,
    open_sealed,
    parse_key,
    parse_keys,
    seal,
)
from everifin_django.exceptions import (
    KeysUnavailableError,
    MalformedError,
    TamperedError,
    UnknownKeyError,
)
from everifin_django.secret import Secret
from tests.support.malicious_server import report

CONTEXT = EncryptionContext(connection_id="7e0c", user_pk="42", kind="refresh")
TOKEN = "canary-token-5d1e"


def key(key_id: str, material: bytes) -> str:
    return f"{key_id}:{base64.b64encode(material).decode()}"


OLD, NEW = key("2026-10", b"\x01" * KEY_BYTES), key("2026-11", b"\x02" * KEY_BYTES)


@pytest.fixture(autouse=True)
def keys(settings):
    settings.EVERIFIN_ENCRYPTION_KEYS = [NEW, OLD]
    return settings


@pytest.fixture
def sealed(keys) -> str:
    return seal(Secret(TOKEN), CONTEXT, active_key())


class TestSeal:
    @pytest.mark.parametrize("text", [TOKEN, "", "ž€\n", "x" * 40_000])
    def test_what_is_sealed_opens(self, text):
        assert open_sealed(seal(Secret(text), CONTEXT, active_key()), CONTEXT) == Secret(text)

    def test_the_format_names_version_and_key(self, sealed):
        version, key_id, payload = sealed.split(".")
        assert (version, key_id) == ("evf1", "2026-11")
        raw = base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4))
        assert len(raw) == 12 + len(TOKEN) + 16
        assert "=" not in payload
        assert sealed.isascii()

    def test_the_plain_string_does_not_show(self, sealed):
        assert TOKEN not in sealed
        assert TOKEN not in repr(open_sealed(sealed, CONTEXT))

    def test_nothing_is_sealed_twice_alike(self):
        texts = {seal(Secret(TOKEN), CONTEXT, active_key()) for _ in range(100)}
        nonces = {text.split(".")[2][:16] for text in texts}
        assert (len(texts), len(nonces)) == (100, 100)

    def test_a_string_sealed_long_ago_opens(self, keys):
        """A known answer: were the format to change unnoticed, every stored token would be lost."""
        keys.EVERIFIN_ENCRYPTION_KEYS = [key("known", bytes(range(32)))]
        context = EncryptionContext("0f0e0d0c-0b0a-0908-0706-050403020100", "1", "access")
        assert open_sealed(KNOWN, context) == Secret("a known answer")

    @pytest.mark.parametrize("first", [100, 161])
    def test_sealing_gives_the_known_answer_for_its_nonce(self, keys, monkeypatch, first):
        keys.EVERIFIN_ENCRYPTION_KEYS = [key("known", bytes(range(32)))]
        monkeypatch.setattr(os, "urandom", lambda size: bytes(range(first, first + size)))
        context = EncryptionContext("0f0e0d0c-0b0a-0908-0706-050403020100", "1", "access")
        known = {100: KNOWN, 161: KNOWN_TO_THE_LAST_X}[first]
        assert seal(Secret("a known answer"), context, active_key()) == known
        assert open_sealed(known, context) == Secret("a known answer")


KNOWN = "evf1.known.ZGVmZ2hpamtsbW5vaGIsjt_f3wEPbeaFvcPqP7mZD2ZGs8qk6n0AL85H"
# Nothing but the padding is cut off the end.
KNOWN_TO_THE_LAST_X = "evf1.known.oaKjpKWmp6ipqqusVLjLS7IUqrhoypzmJ7wULVNqvHKybAUSP9lXJWKX"


class TestTampering:
    def test_every_changed_character_is_noticed(self, sealed):
        for index, character in enumerate(sealed):
            for other in {"A", "B", ".", "=", "\n", "ž"} - {character}:
                changed = sealed[:index] + other + sealed[index + 1 :]
                with pytest.raises((TamperedError, MalformedError, UnknownKeyError)):
                    open_sealed(changed, CONTEXT)

    def test_every_flipped_bit_is_noticed(self, sealed):
        head, _, payload = sealed.rpartition(".")
        raw = base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4))
        for index in range(len(raw)):
            flipped = bytearray(raw)
            flipped[index] ^= 1
            encoded = base64.urlsafe_b64encode(flipped).rstrip(b"=").decode()
            with pytest.raises(TamperedError):
                open_sealed(f"{head}.{encoded}", CONTEXT)

    def test_every_cut_is_noticed(self, sealed):
        for length in range(len(sealed)):
            with pytest.raises((TamperedError, MalformedError)):
                open_sealed(sealed[:length], CONTEXT)

    @pytest.mark.parametrize("more", ["A", "AAAA", "=", " ", "\n", ".", "\0"])
    def test_every_addition_is_noticed(self, sealed, more):
        with pytest.raises((TamperedError, MalformedError)):
            open_sealed(sealed + more, CONTEXT)

    @pytest.mark.parametrize(
        "elsewhere",
        [
            replace(CONTEXT, connection_id="7e0d"),
            replace(CONTEXT, user_pk="43"),
            replace(CONTEXT, kind="access"),
            replace(CONTEXT, kind="id"),
            EncryptionContext(connection_id="7e0c4", user_pk="2", kind="refresh"),
            EncryptionContext(connection_id="42", user_pk="7e0c", kind="refresh"),
        ],
    )
    def test_a_copy_in_another_context_does_not_open(self, sealed, elsewhere):
        with pytest.raises(TamperedError, match="copied from another row or column"):
            open_sealed(sealed, elsewhere)

    def test_the_id_of_another_key_does_not_open_it(self, sealed):
        with pytest.raises(TamperedError, match="'2026-10'"):
            open_sealed(sealed.replace("2026-11", "2026-10"), CONTEXT)

    @pytest.mark.parametrize(
        "text",
        [
            "",
            TOKEN,
            ".",
            "..",
            "evf1",
            "evf1..",
            "evf1.2026-11.",
            "evf1.2026-11.ž",
            "evf2.2026-11.",
        ],
    )
    def test_what_was_never_sealed_is_malformed(self, text):
        with pytest.raises(MalformedError, match="evf1"):
            open_sealed(text, CONTEXT)

    def test_another_version_is_malformed(self, sealed):
        with pytest.raises(MalformedError):
            open_sealed(sealed.replace("evf1", "evf2"), CONTEXT)

    def test_the_other_alphabet_of_base64_is_malformed(self):
        texts = (seal(Secret(TOKEN), CONTEXT, active_key()) for _ in range(1000))
        sealed = next(text for text in texts if "-" in text.split(".")[2])
        head, _, payload = sealed.rpartition(".")
        with pytest.raises(MalformedError):
            open_sealed(f"{head}.{payload.replace('-', '+')}", CONTEXT)


class TestReports:
    def test_a_plain_token_in_the_column_is_shown_nowhere(self):
        with pytest.raises(MalformedError) as caught:
            open_sealed(TOKEN, CONTEXT)
        assert TOKEN not in report(caught.value)

    def test_nor_when_its_key_is_asked_for(self):
        with pytest.raises(MalformedError) as caught:
            key_id_of(TOKEN)
        assert TOKEN not in report(caught.value)

    def test_a_tampered_string_shows_no_key(self, sealed):
        with pytest.raises(TamperedError) as caught:
            open_sealed(sealed, replace(CONTEXT, user_pk="43"))
        shown = report(caught.value)
        assert r"\x02\x02" not in shown
        assert NEW.partition(":")[2] not in shown

    @pytest.mark.parametrize("spoilt", [NEW[:-4], NEW.replace("=", "!"), NEW.replace(":", ";")])
    def test_a_wrong_key_is_shown_nowhere(self, keys, spoilt):
        keys.EVERIFIN_ENCRYPTION_KEYS = [OLD, spoilt]
        with pytest.raises(ImproperlyConfigured) as caught:
            seal(Secret(TOKEN), CONTEXT, active_key())
        shown = report(caught.value)
        assert spoilt[8:40] not in shown
        assert OLD.partition(":")[2] not in shown
        assert TOKEN not in shown

    def test_nor_one_that_is_parsed_alone(self):
        with pytest.raises(ImproperlyConfigured) as caught:
            parse_key(NEW[:-4])
        assert NEW[8:40] not in report(caught.value)


class TestKeys:
    def test_the_first_key_seals_and_all_open(self, keys, sealed):
        keys.EVERIFIN_ENCRYPTION_KEYS = [OLD, NEW]
        assert open_sealed(sealed, CONTEXT) == Secret(TOKEN)
        assert key_id_of(seal(Secret(TOKEN), CONTEXT, active_key())) == "2026-10"

    def test_rotation_loses_nothing(self, keys):
        keys.EVERIFIN_ENCRYPTION_KEYS = [OLD]
        before = seal(Secret(TOKEN), CONTEXT, active_key())
        for step in ([OLD, NEW], [NEW, OLD]):
            keys.EVERIFIN_ENCRYPTION_KEYS = step
            assert open_sealed(before, CONTEXT) == Secret(TOKEN)
        again = seal(open_sealed(before, CONTEXT), CONTEXT, active_key())
        keys.EVERIFIN_ENCRYPTION_KEYS = [NEW]
        assert open_sealed(again, CONTEXT) == Secret(TOKEN)
        with pytest.raises(UnknownKeyError):
            open_sealed(before, CONTEXT)

    def test_a_missing_key_is_named(self, keys, sealed):
        keys.EVERIFIN_ENCRYPTION_KEYS = [OLD]
        with pytest.raises(UnknownKeyError, match="'2026-11'") as caught:
            open_sealed(sealed, CONTEXT)
        assert caught.value.key_id == "2026-11"

    def test_another_key_of_the_same_name_does_not_open_it(self, keys, sealed):
        keys.EVERIFIN_ENCRYPTION_KEYS = [key("2026-11", b"\x03" * KEY_BYTES)]
        with pytest.raises(TamperedError, match="not the one that sealed it"):
            open_sealed(sealed, CONTEXT)

    def test_the_key_of_a_sealed_string_is_told_without_opening_it(self, keys, sealed):
        keys.EVERIFIN_ENCRYPTION_KEYS = [OLD]
        assert key_id_of(sealed) == "2026-11"

    @pytest.mark.parametrize("text", ["", TOKEN, "evf1.2026-11.AAAA", "evf1.a b." + "A" * 40])
    def test_what_was_never_sealed_names_no_key(self, text):
        with pytest.raises(MalformedError, match="evf1"):
            key_id_of(text)

    @pytest.mark.parametrize("three", [b"\xfb\xff\xfe", b"\xfb\xef\xbe", b"\xff\xff\xff"])
    def test_a_key_is_read_in_both_alphabets_of_base64(self, three):
        """Also where only one of the two characters that tell them apart is met."""
        material = three * 10 + b"\x00\x00"
        for encode in (base64.b64encode, base64.urlsafe_b64encode):
            assert parse_key(f"a:{encode(material).decode()}") == Key("a", material)

    def test_a_key_does_not_show_its_material(self):
        assert repr(parse_key(NEW)) == "Key(key_id='2026-11')"

    @pytest.mark.parametrize("size", [0, 16, 31, 33, 64])
    def test_a_key_of_another_length_is_refused(self, size):
        with pytest.raises(ImproperlyConfigured, match=f"'a'.* has {size} bytes and needs 32"):
            parse_key(key("a", b"x" * size))

    @pytest.mark.parametrize(
        "encoded",
        [
            "!" * 44,
            NEW[8:-1],
            NEW[8:] + "\n",
            " " + NEW[8:],
            "b:" + NEW[8:],
            "ž" * 43 + "=",
            "-_+/",
        ],
    )
    def test_a_key_that_is_not_base64_is_refused(self, encoded):
        with pytest.raises(ImproperlyConfigured, match=r"'a'.* (is not valid base64|has 3 bytes)"):
            parse_key(f"a:{encoded}")

    @pytest.mark.parametrize(
        "text", ["", "a", ":", NEW[8:], f":{NEW[8:]}", f"a b:{NEW[8:]}", f"{'a' * 33}:x", "a.b:x"]
    )
    def test_a_key_without_an_id_is_refused(self, text):
        with pytest.raises(ImproperlyConfigured) as caught:
            parse_key(text)
        assert str(caught.value) == (
            "A key in EVERIFIN_ENCRYPTION_KEYS does not read <id>:<base64>, with an id of 1 to 32 "
            "letters, digits, '-' and '_'. `manage.py everifin_new_key` prints one."
        )

    @pytest.mark.parametrize("text", [None, 5, b"a:b", ["a:b"], object()], ids=type)
    def test_a_key_that_is_not_a_string_is_refused(self, text):
        with pytest.raises(ImproperlyConfigured, match="does not read <id>:<base64>"):
            parse_key(text)

    def test_keys_come_in_their_order(self):
        assert [one.key_id for one in parse_keys([NEW, OLD])] == ["2026-11", "2026-10"]

    def test_two_keys_of_one_id_are_refused(self):
        with pytest.raises(ImproperlyConfigured, match="'2026-11' appears twice"):
            parse_keys([NEW, OLD, NEW])

    def test_one_wrong_key_among_right_ones_is_refused(self):
        with pytest.raises(ImproperlyConfigured, match=r"'a' .*not valid base64"):
            parse_keys([NEW, "a:!"])

    def test_a_new_key_is_ready_for_the_settings(self, keys):
        made = new_key(date(2026, 11, 3))
        assert parse_key(made).key_id == "2026-11"
        assert made != new_key(date(2026, 11, 3))
        keys.EVERIFIN_ENCRYPTION_KEYS = [made]
        assert open_sealed(seal(Secret(TOKEN), CONTEXT, active_key()), CONTEXT) == Secret(TOKEN)


class Vault(SettingsKeys):
    """A provider as a site would write one: its own key seals, the settings' keys still open."""

    made = 0

    def __init__(self) -> None:
        type(self).made += 1

    def active(self) -> Key:
        return Key("vault-1", b"\x07" * KEY_BYTES)

    def get(self, key_id: str) -> Key | None:
        return self.active() if key_id == "vault-1" else super().get(key_id)


class BrokenVault:
    """A provider whose service is down, and whose library says too much."""

    def active(self) -> Key:
        raise ConnectionError(f"no answer for {TOKEN}")

    def get(self, key_id: str) -> Key | None:
        raise ConnectionError(f"no answer for {TOKEN}")


class UnbuildableVault(BrokenVault):
    """A provider that talks to its service as soon as it is made."""

    def __init__(self) -> None:
        self.active()


class TestProvider:
    @pytest.fixture
    def vault(self, keys):
        keys.EVERIFIN_KEY_PROVIDER = "tests.test_encryption.Vault"

    def test_its_active_key_seals(self, vault):
        sealed = seal(Secret(TOKEN), CONTEXT, active_key())
        assert key_id_of(sealed) == "vault-1"
        assert open_sealed(sealed, CONTEXT) == Secret(TOKEN)

    def test_what_the_settings_keys_sealed_opens_after_the_change_to_it(self, keys, sealed):
        keys.EVERIFIN_KEY_PROVIDER = "tests.test_encryption.Vault"
        assert open_sealed(sealed, CONTEXT) == Secret(TOKEN)

    def test_it_is_made_once(self, vault):
        active_key()
        made = Vault.made
        for _ in range(3):
            active_key()
            is_known("vault-1")
        assert Vault.made == made

    def test_a_key_it_does_not_have_is_unknown(self, sealed, vault, keys):
        keys.EVERIFIN_ENCRYPTION_KEYS = [OLD]
        assert is_known("vault-1")
        assert not is_known("2026-11")
        with pytest.raises(UnknownKeyError, match=r"'2026-11'.*EVERIFIN_KEY_PROVIDER"):
            open_sealed(sealed, CONTEXT)

    @pytest.mark.parametrize(
        "ask", [active_key, lambda: is_known("a"), lambda: open_sealed(KNOWN, CONTEXT)]
    )
    @pytest.mark.parametrize("vault", ["BrokenVault", "UnbuildableVault"])
    def test_its_failure_is_ours_and_shows_nothing_of_it(self, keys, ask, vault):
        keys.EVERIFIN_KEY_PROVIDER = f"tests.test_encryption.{vault}"
        with pytest.raises(KeysUnavailableError, match="ConnectionError") as caught:
            ask()
        assert caught.value.failure == "ConnectionError"
        assert caught.value.__context__ is None
        assert TOKEN not in report(caught.value)

    @pytest.mark.parametrize("key_id", ["", "a.b", "a" * 33, "ž"])
    def test_a_key_with_a_wrong_id_is_refused(self, key_id):
        with pytest.raises(
            ImproperlyConfigured, match=r"^The id .* is 1 to 32 letters, digits, '-' and '_'\.$"
        ):
            Key(key_id, b"\x07" * KEY_BYTES)

    @pytest.mark.parametrize("size", [0, 16, 31, 33])
    def test_a_key_of_a_wrong_length_is_refused(self, size):
        with pytest.raises(ImproperlyConfigured, match=f"'a' has {size} bytes and needs 32"):
            Key("a", b"\x07" * size)
