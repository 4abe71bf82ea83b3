"""Features that other tools wrote. One format, one file; each reader returns a `base.ImportedFeatures`."""
