"""The theory bench: the paper's claims, checked by number and by picture."""
