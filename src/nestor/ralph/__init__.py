"""Ralph Wiggum: the task loop that does not stop before the work is verified."""
