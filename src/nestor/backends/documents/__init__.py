"""Reads Markdown, text, code, HTML and PDF in child processes with limits."""

from nestor.backends.documents.children import DocumentChildren

__all__ = ["DocumentChildren"]
