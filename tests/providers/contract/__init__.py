"""
What an identity provider answers, one set of cases for all: the sandbox, a real Keycloak, others.

`cases` says what is asked and what is expected, `providers` who is asked, `differences` where
somebody answers otherwise, and why that is so. The sandbox is always asked, Keycloak where it is
installed, and whoever CONTRACT_IDP_URL names: see `providers.from_environment`.
"""
