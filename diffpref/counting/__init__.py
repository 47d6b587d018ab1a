"""What a computation costs, counted instead of timed: FLOPs, live bytes, saved bytes and kernel launches.

Everything here runs on meta tensors, which have a shape and no values, so that the full-size networks can be counted
on any machine in seconds.
"""
