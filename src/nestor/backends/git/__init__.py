"""Private clones of the user's repository."""
