"""Who is measured: one file each, with a function for every thing that a question asks of it.

A function takes plain options and returns an :class:`contenders.common.Action`, or plain facts. A contender that
cannot do a thing lacks the function.
"""
