"""Programs for those who work on modelctl; they are not installed with it."""
