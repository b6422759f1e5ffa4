"""Everifin's bank API for a given access token. Knows no users and no models."""
