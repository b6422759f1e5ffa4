"""A small site whose users read their bank accounts through everifin_django."""
