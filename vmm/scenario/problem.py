"""What a scenario, or a history, is refused for."""


class ScenarioError(ValueError):
    """A scenario that must not run, or what cannot be judged; the text begins with the place."""
