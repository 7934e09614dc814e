"""The search index in Qdrant Edge, in process."""
