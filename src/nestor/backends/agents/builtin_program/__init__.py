"""The agent that comes with Nestor, as it runs inside the sandbox.

Standard library only: the folder is mounted read-only into sandboxes whose ``python3`` is
not ours. ``main`` reads the brief, ``work`` talks and acts, ``policy`` decides what may be
done without a person.
"""
