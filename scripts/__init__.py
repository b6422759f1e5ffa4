"""What contributors run: the bootstrap of manage.py, the demo, its walk, figures of the code."""
