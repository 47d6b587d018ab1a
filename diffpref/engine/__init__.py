"""The per-timestep preference loss engine: a step's exact gradient, from one number for each candidate.

An objective depends on the network only through the errors, so its gradient is the sum of c_i * grad err_i with
c_i = dL / d err_i. `modes` are the orders in which that sum can be computed, `plan` picks one by what fits.
"""
