"""Views for login, connecting, logout, and what people are told."""
