"""
A real Keycloak, on which Everifin's identity provider is built: what it says counts.

`distribution` gets the official one, `server` runs it on this machine, `bank` is the API behind it,
`site` the site in front. ``python -m tests.providers.keycloak`` writes the table in
docs/evidence/keycloak.md.
"""
