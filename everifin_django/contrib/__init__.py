"""For other packages that a site may use. Each module here needs an extra of this one."""
