"""``manage.py demo``: the example site beside the sandbox, to click through or to walk."""
