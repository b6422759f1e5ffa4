"""
Where a provider answers otherwise than `cases` expects, by name, and why that stays so.

A difference that is no longer seen fails its test, as one that is not listed does.
"""

from __future__ import annotations

from typing import NamedTuple


class Difference(NamedTuple):
    observed: str
    reason: str


ONE_CLIENT = (
    "Keycloak ends what the client has of the user's session, the session itself goes on for other "
    "clients. The sandbox has no other client, and ends it; the error is the same."
)
OLD_ISS = "Keycloak did not add iss (RFC 9207) yet; EVERIFIN_REQUIRE_ISS stays off with it."
OLD_WORDS = "Other words for the same refusal, before version 18."
DIFFERENCES: dict[tuple[str, str], Difference] = {
    ("refresh_after_the_code_was_shown_twice", "sandbox"): Difference(
        "400 invalid_grant: Session not active", ONE_CLIENT
    ),
    ("refresh_with_the_successor_of_a_token_shown_twice", "sandbox"): Difference(
        "400 invalid_grant: Session not active", ONE_CLIENT
    ),
    ("refresh_with_a_wider_scope", "sandbox"): Difference(
        "400 invalid_scope",
        "Keycloak does not refuse it. RFC 6749, section 6, forbids to ask for "
        "them, so a site that does should hear of it.",
    ),
    ("ask_for_an_unknown_grant", "sandbox"): Difference(
        "400 unsupported_grant_type: -",
        "oauthlib refuses this before the sandbox is asked; the error is the same.",
    ),
    ("log_in_and_agree", "keycloak legacy"): Difference(
        "code session_state state, state kept", OLD_ISS
    ),
    ("log_in_and_cancel", "keycloak legacy"): Difference(
        "error state: access_denied, state kept", OLD_ISS
    ),
    ("the_discovery_document", "keycloak legacy"): Difference(
        "issuer and endpoints are as documented; S256", OLD_ISS
    ),
    ("exchange_a_code_with_a_wrong_verifier", "keycloak legacy"): Difference(
        "400 invalid_grant: PKCE verification failed", OLD_WORDS
    ),
    ("exchange_a_code_as_an_unknown_client", "keycloak legacy"): Difference(
        "400 invalid_client: Invalid client credentials", f"{OLD_WORDS} The status is 400."
    ),
    **{
        (name, "keycloak legacy"): Difference(
            "401 unauthorized_client: Invalid client secret", OLD_WORDS
        )
        for name in (
            "exchange_a_code_with_a_wrong_secret",
            "refresh_with_a_wrong_secret",
            "log_out_with_a_wrong_secret",
        )
    },
    ("ask_who_it_is_without_a_token", "keycloak legacy"): Difference(
        "400", "A missing token was a malformed request."
    ),
    ("ask_who_it_is_without_the_scope_openid", "keycloak legacy"): Difference(
        "200", "Every access token was good for this before the scope openid was asked for."
    ),
    ("the_refresh_token", "keycloak legacy"): Difference(
        "HS256, Refresh", "A site does not read its refresh tokens."
    ),
}
"""By the names of case and provider."""
