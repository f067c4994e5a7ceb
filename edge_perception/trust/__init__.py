"""The trust report: what an INT8 model loses against its float model on the user's own frames."""
