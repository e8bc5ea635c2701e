"""The report of `nlc view`: one HTML file that shows what the compiler made of a spec, and where each part came from.

`report` puts the page together; `marks` joins its parts: everything that comes from a line of the YAML carries that place.
"""
