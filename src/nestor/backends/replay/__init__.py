"""Model traffic recorded to a cassette, and replayed from it."""
