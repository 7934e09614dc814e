"""Embeddings: a server of them over HTTP, or an ONNX model in this process."""
