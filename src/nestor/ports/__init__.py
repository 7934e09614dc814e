"""What the services need from the outside world: one Protocol a file.

Every method may raise ``Unavailable`` when its backend does not answer.
"""
