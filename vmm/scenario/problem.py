"""What a scenario, or a history, is refused for."""


class ScenarioError(ValueError):
    """A scenario that must not run, or what cannot be judged; the text begins with the place.

    >>> from vmm import Scenario, ScenarioError, operations, run_scenario
    >>> try:
    ...     run_scenario(Scenario("wild", (operations.Touch(gpa=-1),)))
    ... except ScenarioError as error:
    ...     print(str(error).partition(":")[0])
    $.operations[0].gpa
    """
