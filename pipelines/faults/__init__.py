"""The fault laboratory: runs a pipeline, disturbs it as a plan says, and checks what came of it.

    plan.py, kinds.py          what a plan may say, and what can befall a run
    reading.py, problems.py    reading a plan, with everything that is wrong with it
    tiny.py                    the run of plans that name none
    schedule.py                the faults of a plan, with the random ones drawn
    trial.py                   a whole trial, from the plan to its result
    disturb.py, nodes.py       both runs; faults from outside the workers
    outcome.py, history.py     what followed each fault; which samples were used
    checks.py                  whether the run is what it would have been, and left nothing behind

Workers fire the faults of a plan themselves, by `cluster.resilience.fault_injection`. What a worker
cannot do, it asks for by a file, and the trial does it to the nodes of `cluster.laboratory`.
"""
