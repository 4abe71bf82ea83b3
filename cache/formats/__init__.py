"""Features in the formats of other tools. One format, one file, which reads and writes it.

Each reader returns a `base.ImportedFeatures`, each writer takes an open cache and a path.
"""
