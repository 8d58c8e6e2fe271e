"""Random input to everything that reads: `pytest tests/fuzz -m slow` for 15,000 cases, an ordinary run makes 400."""
