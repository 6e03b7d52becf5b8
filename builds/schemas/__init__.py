"""The JSON Schemas of Kiln's output and input: `build.v1.json` (event data, the API) and `request.v1.json`.

They are files, so that clients can read them without running Kiln. `python -m builds.schemas` generates them from the
structs that the code uses, so the two cannot disagree.
"""
