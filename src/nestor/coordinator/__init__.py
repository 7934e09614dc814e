"""The Hybrid Coordinator: routes each query to a model, and meters every call."""
