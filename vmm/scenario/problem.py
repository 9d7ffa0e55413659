"""The error for a scenario or a history that is refused."""


class ScenarioError(ValueError):
    """A scenario must not run, or a history cannot be judged; the text begins with the place.

    >>> from vmm import Scenario, ScenarioError, operations, run_scenario
    >>> try:
    ...     run_scenario(Scenario("wild", (operations.Touch(gpa=-1),)))
    ... except ScenarioError as error:
    ...     print(str(error).partition(":")[0])
    $.operations[0].gpa
    """
