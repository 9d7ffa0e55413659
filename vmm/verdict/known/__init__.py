"""Known issues: bugs that some kernels are known to have, and when a difference is one of them.

A known issue is an expected failure: it is reported whether it still shows or not, and it never
excuses any other difference. Whether a scenario meets it depends on what the scenario does
(`conditions.py`, and the files of a subject), on the rule that is broken and at which operation,
never on its name; whether a host may have it, on the module that runs its guests, and on what
`hosts.py` says of some. `issues.py` has them all.
"""
