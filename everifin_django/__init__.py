"""
Log in with Everifin, and call its bank API as the user who connected it.

Importing this package touches no settings, no models and no network.
"""

__version__ = "0.1.0"
