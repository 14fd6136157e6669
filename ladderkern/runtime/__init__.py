"""The floor that the features stand on: library loading, backend choice, op registration, kernel launches."""
