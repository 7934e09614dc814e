"""The event log in files that many processes append to."""
