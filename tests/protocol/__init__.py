"""Many at once: threads and processes that want the same token."""
