"""The OAuth 2.0 and OpenID Connect client: token endpoint, ID tokens, signing keys."""
