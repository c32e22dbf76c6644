"""One file a command, imported when it is called or listed. A file holds `command`, parses, calls flow, prints; no
logic.
"""
