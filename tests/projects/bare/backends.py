"""The site's own backend: Everifin cannot know when somebody joined."""

from typing import Any

from django.utils import timezone

from everifin_django.backends import EverifinBackend


class JoiningBackend(EverifinBackend):
    def create_user(self, claims: Any) -> Any:
        name = self.get_username(claims)
        return self.UserModel.objects.create_user(name, joined_on=timezone.localdate())
