"""The commands: the only place where scenarios, kernel, verdicts and reports meet."""
