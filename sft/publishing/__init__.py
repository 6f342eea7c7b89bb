"""How a model reaches the Hub: merging, the card, the search for leaks, staging and upload."""
