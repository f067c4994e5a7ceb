"""Running a model: one protocol, one module a runtime."""
