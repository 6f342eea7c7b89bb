"""How questions are answered: option likelihood, generation and its parser, servers, and the ways to ask."""
