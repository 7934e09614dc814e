"""AIDB, the knowledge base: remembers texts and finds context with its sources."""
