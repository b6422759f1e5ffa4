"""
A pretend Everifin for tests and demos, and the ways to reach it without a network.

`everifin_django.testing.sandbox.Sandbox` is the pretend Everifin;
`everifin_django.testing.adapter.mount` puts it where requests would open a connection.
Importing this package loads neither.
"""
