"""What commands find out, whichever format and engine it is of; reports show it."""
