"""
The sandbox, for tests and demos, and the ways to reach it without a network.

- `everifin_django.testing.plugin`: the pytest fixtures `everifin`, `everifin_user`,
  `everifin_login`, `everifin_connect`; pytest finds them by itself.
- `everifin_django.testing.testcases`: `EverifinTestCase` and `EverifinMixin`, the same for Django's
  test cases.
- `everifin_django.testing.factories`: a factory-boy factory for each model.
- `everifin_django.testing.sandbox.Sandbox`: the sandbox itself;
  `everifin_django.testing.adapter.mount` puts it where requests would open a connection.

Importing this package loads none of them.
"""
