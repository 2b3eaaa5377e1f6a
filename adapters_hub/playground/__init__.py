"""The page in the browser: blends side by side, with a server on this machine alone.

Knows an `AdaptedModel` and what its methods give; trains only through `training`, in a process
beside this one.
"""
