"""How results are shown: tables, JSON, pictures."""
