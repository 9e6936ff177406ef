"""The engine of fleets: Temporal decides who does what when; this is the only place that knows it.

What is done stays with parbake: every activity is one command of it in a process of its own, which converges. What is
true stays in the store. So the engine's database can be lost, and with it nothing but the order of work.
"""
