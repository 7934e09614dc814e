"""The nouns of Nestor: frozen values without behaviour or I/O.

Import from the module that owns the noun: ``task``, ``event``, ``knowledge``,
``routing``, ``health``, ``access``. ``network`` and ``secret`` tell good values from bad.
"""
