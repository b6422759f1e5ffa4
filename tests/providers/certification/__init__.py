"""
The tests by which the OpenID Foundation certifies relying sites, played against this package and,
for comparison, against mozilla-django-oidc as it ships.

``python -m tests.providers.certification`` plays them all, prints the table and writes it into
docs/evidence/certification.md. `cases` says what the provider does and what is right, `provider`
does it, `sites` has the sites under test, `plans` has all cases, `matrix` plays and counts.
"""
