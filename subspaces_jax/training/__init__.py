"""Training a stack of networks: the step and the loop, what they minimise, optimizers, schedules and averages.

state.py       what a training holds
objective.py   what a step minimises
step.py        one step: points drawn, contracted, and the gradient of every endpoint
dispatch.py    many steps in one program, and their report
flat.py        a state in flat leaves
still.py       a state without endpoints that stay as they are
loop.py        the only loop
optimizers.py  optimizers of a stack
schedules.py   learning rates over a training
averages.py    means and Gaussians of checkpoints
regularity.py  p-variation of weights, and a rate that it drives
"""
