"""All cases, by the profile of the conformance suite they belong to; last those beside it."""

from __future__ import annotations

from collections.abc import Mapping

from tests.providers.certification.beside import BESIDE
from tests.providers.certification.cases import BASIC, CONFIG, CORE, FAPI_2, REFRESH, Case
from tests.providers.certification.logout import BACK_CHANNEL, RP_INITIATED

PLANS: Mapping[str, tuple[Case, ...]] = {
    "Basic RP": BASIC,
    "More of OpenID Connect Core": CORE,
    "Config RP": CONFIG,
    "Refresh token": REFRESH,
    "RP-initiated logout": RP_INITIATED,
    "Back-channel logout": BACK_CHANNEL,
    "FAPI 2.0 security profile, client": FAPI_2,
    "Beside the suite": BESIDE,
}
CASES = tuple(case for cases in PLANS.values() for case in cases)
SUITE = CASES[: -len(BESIDE)]
