"""HTTP with a deadline, bounded answers and errors that hold no secret."""
