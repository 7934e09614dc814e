"""How callers and servers of models speak, and what one says in the words of another.

Chat completions are the hub: a request in another dialect becomes a chat request, unless
the server speaks the caller's own, and then nothing is translated at all. What the other
side cannot say is an error that names the field; what only hints (a cache mark, a
thinking budget) is left out, and the reply says so.
"""
