"""
A real Keycloak, on which Everifin's identity provider is built: what it says counts.

`distribution` gets the official one, `server` runs it on this machine.
"""
